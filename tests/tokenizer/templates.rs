//! Chat templates against Hugging Face's `apply_chat_template`: see
//! `tests/goldens/make_chat_template_goldens.py`.

use std::collections::BTreeMap;

use girandole::model::text::chat_template::ChatTemplate;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Goldens {
    /// What `strftime_now` takes for now, in seconds since 1970.
    now: u64,
    templates: BTreeMap<String, String>,
    chats: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    chat: String,
    variables: Map<String, Value>,
    /// What is rendered, or
    text: Option<String>,
    /// what the template raises (empty if it fails without saying why).
    raised: Option<String>,
}

#[test]
fn templates_render_as_hugging_face_renders_them() {
    let goldens: Goldens =
        serde_json::from_str(include_str!("../fixtures/tokenizer/chat_templates.json"))
            .expect("a valid fixture");
    let now = goldens.now;
    let templates: BTreeMap<&str, ChatTemplate> = goldens
        .templates
        .iter()
        .map(|(name, source)| {
            let template = ChatTemplate::with_clock(source, "<s>", "</s>", move || now);
            (name.as_str(), template.expect(name))
        })
        .collect();
    assert!(goldens.cases.len() > 200);
    let mut wrong = Vec::new();
    for case in &goldens.cases {
        let name = format!("{} {} {:?}", case.template, case.chat, case.variables);
        let mut variables = case.variables.clone();
        let prompt = variables.remove("add_generation_prompt").is_some();
        let rendered = templates[case.template.as_str()].render(
            &goldens.chats[&case.chat],
            prompt,
            &variables,
        );
        match (rendered, &case.text, &case.raised) {
            (Ok(rendered), Some(text), _) if &rendered == text => {}
            (Err(error), None, Some(raised)) if error.to_string().contains(raised) => {}
            (rendered, text, raised) => {
                wrong.push(format!(
                    "{name}:\n{rendered:?}\nshould be\n{text:?}{raised:?}"
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
