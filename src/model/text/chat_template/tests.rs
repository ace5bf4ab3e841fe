use serde_json::json;

use super::*;

fn render(source: &str) -> Result<String, String> {
    let messages = json!([{"role": "user", "content": "secret"}]);
    let template = ChatTemplate::with_clock(source, "<s>", "</s>", || 1_783_037_109)
        .map_err(|error| error.to_string())?;
    template
        .render(&messages, true, &Map::new())
        .map_err(|error| error.to_string())
}

#[test]
fn templates_see_what_hugging_face_gives_them() {
    let check = |source: &str, text: &str| assert_eq!(render(source).as_deref(), Ok(text));
    check(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        "<s>secret</s>",
    );
    check(
        "{{ add_generation_prompt }} {{ tools }} {{ nothing }}",
        "True None ",
    );
    check("{{ strftime_now('%d %b %Y') }}", "03 Jul 2026");
    check("{{ messages[0]['role'].upper().startswith('US') }}", "True");
    check(
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "01",
    );
    check(
        "{{ {'a': '<b>', 'c': [1, 2]} | tojson }}",
        r#"{"a": "<b>", "c": [1, 2]}"#,
    );
    check("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]");
    check("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb");
    check(
        "a {%- generation -%} b {%- endgeneration %} c{% generation %}d{% endgeneration %}",
        "ab cd",
    );
}

#[test]
fn errors_say_what_happened_but_not_what_was_said() {
    let check = |source: &str, message: &str| {
        let error = render(source).expect_err(source);
        assert!(error.contains(message), "{error}");
        assert!(!error.contains("secret"), "{error}");
    };
    check(
        "{{ raise_exception('roles must alternate') }}",
        "roles must alternate",
    );
    check(
        "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}",
        "deep",
    );
    check(
        "line\n{{ messages[0].content.nosuch() }}",
        "line 2: unknown method",
    );
    check("{{ messages[0].content + 1 }}", "invalid operation");
    check("{{ nothing | tojson }}", "invalid operation");
    check("a\n{% if %}", "line 2");
    check(
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "invalid operation",
    );
    check(
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "5000000 instructions",
    );
}

#[test]
fn a_raised_message_is_cut() {
    let error = render("{{ raise_exception('x' * 5000) }}").unwrap_err();
    assert!(error.len() < MAX_RAISED_CHARS + 100);
}

#[test]
fn variables_add_names_but_replace_no_message() {
    let variables = json!({"enable_thinking": false, "messages": [], "bos_token": "B"});
    let template = ChatTemplate::new(
        "{{ enable_thinking }}{{ messages | length }}{{ bos_token }}",
        "<s>",
        "</s>",
    )
    .unwrap();
    let text = template.render(&json!([{}]), false, variables.as_object().unwrap());
    assert_eq!(text.unwrap(), "False1B");
}
