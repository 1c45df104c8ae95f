//! Pages of HTML: body, style, script and data in one file, which needs nothing beside it.

use std::path::Path;

use anyhow::Result;
use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

/// What a page is made of; `pages/page.html`, `pages/common.css` and `pages/common.js` come on top.
pub struct Page<'a> {
    /// A template of `title`.
    pub body: &'a str,
    /// Plain text: the template escapes it.
    pub title: &'a str,
    pub css: &'a str,
    pub script: &'a str,
}

impl Page<'_> {
    /// Replaces `file` by the page with `data`, which its script reads as JSON.
    pub fn write(&self, file: &Path, data: &impl Serialize) -> Result<()> {
        let page = self.rendered(include_str!("pages/page.html"), data)?;
        Ok(candle_attention::replace_file(file, page.as_bytes())?)
    }

    /// The page in a frame: a template of `title`, `common_css`, `css`, `body`, `data`, `common_js` and `script`.
    fn rendered(&self, frame: &str, data: &impl Serialize) -> Result<String> {
        let mut environment = Environment::new();
        // Style and script stand as they are.
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let values = context! {
            title => self.title,
            common_css => include_str!("pages/common.css"),
            css => self.css,
            body => environment.render_str(self.body, context! { title => self.title })?,
            common_js => include_str!("pages/common.js"),
            script => self.script,
            data => for_script(&serde_json::to_string(data)?),
        };
        Ok(environment.render_str(frame, values)?)
    }
}

/// JSON as it can stand in a `script` element: nothing in it ends the element, begins a comment, or ends a line of script.
fn for_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stay_inside_their_script_element() {
        let text = "</script><!--<script>\u{2028}\u{2029}\\u003c&\"";
        let json = for_script(&serde_json::to_string(text).unwrap());
        assert!(!json.contains(['<', '\u{2028}', '\u{2029}']), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_title_is_text_and_style_and_script_are_as_they_stand() {
        let frame = "{{ title|e }}\n{{ body }}\n{{ css }}\n{{ script }}\n{{ data }}";
        let body = "<p>{{ title|e }}";
        let page = Page { body, title: "a < b", css: "p > a {}", script: "'\"' < 1 && {{ x }}" };
        let lines = ["a &lt; b", "<p>a &lt; b", "p > a {}", "'\"' < 1 && {{ x }}", r#"["\u003c/script>"]"#];
        assert_eq!(page.rendered(frame, &["</script>"]).unwrap().lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn no_source_of_a_page_ends_its_element() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/pages");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
            let is_template = path.extension().is_some_and(|extension| extension == "html");
            for end in ["</script", "</style", "<!--"] {
                assert!(is_template || !text.contains(end), "{} contains {end}", path.display());
            }
        }
    }
}
