use super::*;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, [("eos_token".into(), "</s>".into())]).unwrap()
}

fn values(messages: &[(&str, &str)]) -> Vec<Value> {
    messages.iter().map(|(role, content)| Message::new(*role, *content).value()).collect()
}

fn answers(source: &str, messages: &[(&str, &str)]) -> Result<Vec<String>> {
    let rendered = template(source).render_with_answers(&values(messages), &Value::from(()))?;
    Ok(rendered.answers.iter().map(|range| rendered.text[range.clone()].to_string()).collect())
}

const TALK: [(&str, &str); 4] = [("user", "one"), ("assistant", "two"), ("user", "três"), ("assistant", "four")];

const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}\
                     {% if add_generation_prompt %}<assistant>{% endif %}";

#[test]
fn turns_are_found_without_marks_where_the_text_only_grows() {
    assert_eq!(answers(PLAIN, &TALK).unwrap(), ["two</s>\n", "four</s>\n"]);
    let changing = PLAIN.replace("{{ m.content }}", "{{ m.content if loop.last else m.content[:2] }}");
    let error = answers(&changing, &TALK).unwrap_err().to_string();
    assert!(error.contains("message 2 changes with what follows") && error.contains("{% generation %}"), "{error}");
}

#[test]
fn turns_are_those_of_generation_blocks_if_there_are_any() {
    for (open, close) in [("{% generation %}", "{% endgeneration %}"), ("{%- generation -%}", "{%- endgeneration -%}")]
    {
        let marked = format!(
            "{{% for m in messages %}}<{{{{ m.role }}}}>{{% if m.role == 'assistant' %}} {open} {{{{ m.content }}}}\
             {{{{ eos_token }}}}{close}{{% else %}}{{{{ m.content }}}}{{% endif %}}\n{{% endfor %}}"
        );
        let expected = if open.contains('-') { ["two</s>", "four</s>"] } else { [" two</s>", " four</s>"] };
        assert_eq!(answers(&marked, &TALK).unwrap(), expected, "{open}");
        let text = template(&marked).render(&[Message::new("assistant", "two")], false).unwrap();
        assert_eq!(text, format!("<assistant>{}{}", if open.contains('-') { "" } else { " " }, expected[0]));
        let error = answers(&marked, &[("assistant", "\u{fdd1}\u{fdd0}")]).unwrap_err().to_string();
        assert!(error.contains("U+FDD"), "{error}");
    }
}

#[test]
fn what_a_template_refuses_is_said_in_its_words() {
    let error = |source: &str| {
        let template = ChatTemplate::new(source, [])?;
        template.render(&[Message::new("user", "x")], false)
    };
    let message = |source| error(source).unwrap_err().to_string();
    assert_eq!(message("\n{{ raise_exception('no system') }}"), "chat template, line 2: no system");
    assert!(message("{% if %}").starts_with("chat template, line 1: syntax error"), "{}", message("{% if %}"));
    assert!(message("{{ messages.x.y }}").contains("undefined"), "{}", message("{{ messages.x.y }}"));
}

#[test]
fn a_template_that_would_not_end_or_fill_the_memory_is_stopped() {
    for hostile in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ 'a' * 99999999999 }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    ] {
        let error = template(hostile).render(&[], false).unwrap_err().to_string();
        assert!(error.starts_with("chat template"), "{hostile}: {error}");
    }
}

#[test]
fn the_template_of_a_configuration_is_its_text_or_the_one_named_default() {
    let of = |chat_template: &str| {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::bytes(true).unwrap().save(dir.path(), 8).unwrap();
        let config = format!(r#"{{"chat_template": {chat_template}, "eos_token": {{"content": "END"}}}}"#);
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let template = Tokenizer::open(dir.path()).unwrap().chat_template()?;
        template.map(|template| template.render(&[], false)).transpose()
    };
    assert_eq!(of("null").unwrap(), None);
    assert_eq!(of(r#""{{ eos_token }}""#).unwrap().unwrap(), "END");
    let named = |name: &str| format!(r#"[{{"name": "rag", "template": "1"}}, {{"name": "{name}", "template": "2"}}]"#);
    assert_eq!(of(&named("default")).unwrap().unwrap(), "2");
    assert!(of(&named("tools")).unwrap_err().to_string().contains("one named default"));
}

#[test]
fn a_file_beside_the_tokenizer_comes_first_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    [&first, &second].iter().for_each(|path| std::fs::create_dir(path).unwrap());
    Tokenizer::bytes(true).unwrap().save(&first, 8).unwrap();
    std::fs::write(first.join("chat_template.jinja"), "{{ bos_token }}!").unwrap();
    let tokenizer = Tokenizer::open(&first).unwrap();
    tokenizer.save(&second, 9).unwrap();
    for tokenizer in [tokenizer, Tokenizer::open(&second).unwrap()] {
        let template = tokenizer.chat_template().unwrap().unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "<|endoftext|>!");
        assert_eq!(template.special_token("eos_token"), Some("<|endoftext|>"));
    }
}
