//! HTML and SVG, written so that nothing but constants of this program stands unescaped. The result is
//! XML, too: every element is closed.

use std::fmt::{Display, Write};

/// Attributes of an element.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

/// Markup that grows.
#[derive(Default)]
pub(super) struct Markup(String);

impl Markup {
    /// A constant of the program, as it is.
    pub(super) fn raw(&mut self, constant: &'static str) {
        self.0.push_str(constant);
    }

    /// Anything at all, escaped.
    pub(super) fn text(&mut self, value: impl Display) {
        let escaped = write!(Escaped(&mut self.0), "{value}");
        debug_assert!(escaped.is_ok(), "a string takes everything");
    }

    /// An element with whatever `inside` writes.
    pub(super) fn element(
        &mut self,
        name: &'static str,
        attributes: Attributes<'_>,
        inside: impl FnOnce(&mut Self),
    ) {
        self.open(name, attributes);
        self.0.push('>');
        inside(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// An element with a text in it.
    pub(super) fn tagged(&mut self, name: &'static str, class: &'static str, value: impl Display) {
        match class {
            "" => self.element(name, &[], |markup| markup.text(value)),
            class => self.element(name, &[("class", &class)], |markup| markup.text(value)),
        }
    }

    /// An element without content. For SVG, and for the void elements of HTML.
    pub(super) fn empty(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.open(name, attributes);
        self.0.push_str("/>");
    }

    fn open(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.0.push('<');
        self.0.push_str(name);
        for (attribute, value) in attributes {
            self.0.push(' ');
            self.0.push_str(attribute);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
    }

    /// A line end, for people who read the source.
    pub(super) fn line(&mut self) {
        self.0.push('\n');
    }

    /// What was written.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Escapes what is written through it.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(character),
                // XML has none of the control characters, and those that turn the direction of text
                // could make a line show something else than it says.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {
                    self.0.push('\u{fffd}');
                }
                character if character.is_control() => self.0.push('\u{fffd}'),
                character => self.0.push(character),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_constants_is_markup() {
        let mut markup = Markup::default();
        let evil = "</title><script>'\"&\u{0}\u{202e}";
        markup.element("p", &[("title", &evil)], |markup| markup.text(evil));
        markup.empty("br", &[]);
        let safe = "&lt;/title&gt;&lt;script&gt;&#39;&quot;&amp;\u{fffd}\u{fffd}";
        assert_eq!(
            markup.finish(),
            format!("<p title=\"{safe}\">{safe}</p><br/>")
        );
    }
}
