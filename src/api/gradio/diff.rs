//! What has changed between two values, as Gradio's clients apply it: a list of edits
//! `[action, path, value]`, in order. `append` adds to a string, `add` and `delete` change the size of a
//! list or an object, `replace` does for the rest; an empty path means the value as a whole.

use serde_json::{Value, json};

/// The edits that turn `old` into `new`: none if they are equal.
pub(super) fn diff(old: &Value, new: &Value) -> Vec<Value> {
    let mut edits = Vec::new();
    compare(old, new, &mut Vec::new(), &mut edits);
    edits
}

/// The one edit that adds `suffix` to a string.
pub(super) fn append(suffix: &str) -> Value {
    json!(["append", [], suffix])
}

fn compare(old: &Value, new: &Value, path: &mut Vec<Value>, edits: &mut Vec<Value>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Value::String(old), Value::String(new)) if new.starts_with(old.as_str()) => {
            edits.push(json!(["append", path, new[old.len()..]]));
        }
        (Value::Array(old), Value::Array(new)) => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                within(index.into(), path, |path| compare(old, new, path, edits));
            }
            for (index, added) in new.iter().enumerate().skip(old.len()) {
                within(index.into(), path, |path| {
                    edits.push(json!(["add", path, added]));
                });
            }
            // From the end, so that the numbers of those before stay what they are.
            for index in (new.len()..old.len()).rev() {
                within(index.into(), path, |path| {
                    edits.push(json!(["delete", path, null]));
                });
            }
        }
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                within(key.as_str().into(), path, |path| {
                    edits.push(json!(["delete", path, null]));
                });
            }
            for (key, value) in new {
                within(key.as_str().into(), path, |path| match old.get(key) {
                    Some(before) => compare(before, value, path, edits),
                    None => edits.push(json!(["add", path, value])),
                });
            }
        }
        (_, new) => edits.push(json!(["replace", path, new])),
    }
}

fn within(step: Value, path: &mut Vec<Value>, work: impl FnOnce(&mut Vec<Value>)) {
    path.push(step);
    work(path);
    path.pop();
}

/// What a client does with edits. Here to hold [`diff`] to it.
///
/// # Panics
/// If an edit names no place in the value.
#[cfg(test)]
pub(super) fn applied(mut value: Value, edits: &[Value]) -> Value {
    for edit in edits {
        let path = edit[1].as_array().expect("a path");
        let Some((last, before)) = path.split_last() else {
            match edit[0].as_str() {
                Some("replace") => value = edit[2].clone(),
                Some("append") => {
                    let text = value.as_str().expect("a string").to_owned();
                    value = Value::from(text + edit[2].as_str().expect("a string"));
                }
                other => panic!("{other:?} on a whole value"),
            }
            continue;
        };
        let mut place = &mut value;
        for step in before {
            place = match step.as_str() {
                Some(key) => place.get_mut(key),
                None => place.get_mut(step.as_u64().expect("a number") as usize),
            }
            .expect("the path is there");
        }
        let action = edit[0].as_str().expect("an action");
        match (place, action) {
            (Value::Array(list), _) => {
                let index = last.as_u64().expect("a number") as usize;
                match action {
                    "replace" => list[index] = edit[2].clone(),
                    "add" => list.insert(index, edit[2].clone()),
                    "delete" => drop(list.remove(index)),
                    "append" => {
                        let text = list[index].as_str().expect("a string").to_owned();
                        list[index] = Value::from(text + edit[2].as_str().expect("a string"));
                    }
                    other => panic!("{other} in a list"),
                }
            }
            (Value::Object(members), _) => {
                let key = last.as_str().expect("a key").to_owned();
                match action {
                    "replace" | "add" => drop(members.insert(key, edit[2].clone())),
                    "delete" => drop(members.remove(&key)),
                    "append" => {
                        let text = members[&key].as_str().expect("a string").to_owned();
                        let text = text + edit[2].as_str().expect("a string");
                        members.insert(key, Value::from(text));
                    }
                    other => panic!("{other} in an object"),
                }
            }
            (place, _) => panic!("no place within {place}"),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edits_are_those_that_clients_know() {
        let check = |old: Value, new: Value, edits: Value| {
            assert_eq!(Value::from(diff(&old, &new)), edits, "{old} to {new}");
        };
        check(json!("a"), json!("a"), json!([]));
        check(json!("a"), json!("abc"), json!([["append", [], "bc"]]));
        check(json!("abc"), json!("a"), json!([["replace", [], "a"]]));
        check(json!(null), json!(["a"]), json!([["replace", [], ["a"]]]));
        check(
            json!([{"path": "x1", "n": 1}]),
            json!([{"path": "y", "n": 1}, "z"]),
            json!([["replace", [0, "path"], "y"], ["add", [1], "z"]]),
        );
        check(
            json!({"a": 1, "b": [1, 2, 3]}),
            json!({"b": [1], "c": "d"}),
            json!([
                ["delete", ["a"], null],
                ["delete", ["b", 2], null],
                ["delete", ["b", 1], null],
                ["add", ["c"], "d"]
            ]),
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0u8..9).prop_map(Value::from),
            "[aé]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn applying_the_edits_gives_the_new_value(old in value(), new in value()) {
            let edits = diff(&old, &new);
            prop_assert_eq!(edits.is_empty(), old == new);
            prop_assert_eq!(applied(old, &edits), new);
        }
    }
}
