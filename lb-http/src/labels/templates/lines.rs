//! HAProxy's configuration text as templates have it: placeholders filled in, lines cut into words, conditions read.
//!
//! What a line means is not decided here.

use std::time::Duration;

use super::super::reader::parse_duration;

/// One line: its words, and the text for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub text: String,
    pub words: Vec<String>,
}

impl Line {
    /// The words as borrowed ones, to be matched.
    pub fn slice(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }
}

/// Replaces `{name}` by what `value` knows of it. Braces around a condition, `{ ssl_fc }`, stay; so do doubled ones, as
/// one, because Marathon-LB formats some templates and not others. `Err`: a name that is not known.
pub(super) fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let text = text.replace("{{", "{").replace("}}", "}");
    let mut filled = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('{') {
        let (before, after) = rest.split_at(open);
        filled.push_str(before);
        let name = after[1..].split_once('}').map(|(name, _)| name);
        match name.filter(|n| !n.is_empty() && !n.contains(char::is_whitespace)) {
            Some(name) => {
                filled.push_str(&value(name).ok_or_else(|| name.to_owned())?);
                rest = &after[name.len() + 2..];
            }
            None => {
                filled.push('{');
                rest = &after[1..];
            }
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Lines with something on them. A backslash keeps a blank in a word, quotes keep several, `#` begins a comment.
pub(super) fn lines(text: &str) -> Vec<Line> {
    let lines = text.lines().map(|line| Line { text: line.trim().to_owned(), words: words(line) });
    lines.filter(|line| !line.words.is_empty()).collect()
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', _) if quote != Some('\'') => {
                word.get_or_insert_default().extend(letters.next());
            }
            (q, Some(open)) if q == open => quote = None,
            (q @ ('"' | '\''), None) => {
                word.get_or_insert_default();
                quote = Some(q);
            }
            ('#', None) => break,
            (blank, None) if blank.is_whitespace() => words.extend(word.take()),
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// HAProxy's times: a bare number is of milliseconds.
pub(super) fn time(text: &str) -> Option<Duration> {
    parse_duration(text, Duration::from_millis(1))
}

/// A condition cut into its terms, all of them joined in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub holds: Holds,
    pub terms: Vec<Term>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// When all terms do.
    IfAll,
    IfAny,
    UnlessAll,
    UnlessAny,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub negated: Negated,
    /// The name of an ACL, or the words between braces.
    pub test: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Negated {
    No,
    Yes,
}

/// `if A B`, `unless { X } or B`. `None`: not understood, e.g. `and` and `or` mixed.
pub(super) fn condition(words: &[&str]) -> Option<Condition> {
    let (keyword, rest) = words.split_first()?;
    let mut terms = Vec::new();
    let mut n_ors = 0;
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        if matches!(*word, "or" | "||") {
            n_ors += 1;
            continue;
        }
        let (negated, word) = match word.strip_prefix('!') {
            Some("") => (Negated::Yes, *rest.next()?),
            Some(word) => (Negated::Yes, word),
            None => (Negated::No, *word),
        };
        let test = if word == "{" {
            let inner: Vec<&str> = rest.by_ref().copied().take_while(|w| *w != "}").collect();
            inner.join(" ")
        } else {
            word.to_owned()
        };
        terms.push(Term { negated, test });
    }
    let holds = match (*keyword, n_ors) {
        ("if", 0) => Holds::IfAll,
        ("unless", 0) => Holds::UnlessAll,
        ("if", n) if n + 1 == terms.len() => Holds::IfAny,
        ("unless", n) if n + 1 == terms.len() => Holds::UnlessAny,
        _ => return None,
    };
    (!terms.is_empty()).then_some(Condition { holds, terms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_conditions_stay() {
        let value = |name: &str| (name == "backend").then(|| "a_1".to_owned());
        for (text, expect) in [
            ("use_backend {backend} if { ssl_fc }", Ok("use_backend a_1 if { ssl_fc }")),
            ("if {{ ssl_fc }}", Ok("if { ssl_fc }")),
            ("no braces", Ok("no braces")),
            ("{nope}", Err("nope")),
            ("open {", Ok("open {")),
        ] {
            let filled = fill(text, value);
            assert_eq!(filled.as_deref().map_err(String::as_str), expect, "{text}");
        }
    }

    #[test]
    fn words_heed_escapes_quotes_and_comments() {
        for (line, expect) in [
            (r"rspadd X:\ a\ b", &["rspadd", "X: a b"][..]),
            ("http-response set-header X \"a b\" # why", &["http-response", "set-header", "X", "a b"]),
            ("  timeout server 30m  ", &["timeout", "server", "30m"]),
            ("set X ''", &["set", "X", ""]),
            ("# only a comment", &[]),
        ] {
            assert_eq!(words(line), expect, "{line}");
        }
    }

    #[test]
    fn conditions() {
        let read = |text: &str| condition(&text.split(' ').collect::<Vec<_>>());
        let term = |negated, test: &str| Term { negated, test: test.to_owned() };
        for (text, expect) in [
            ("if { ssl_fc }", Some((Holds::IfAll, vec![term(Negated::No, "ssl_fc")]))),
            ("if !{ ssl_fc }", Some((Holds::IfAll, vec![term(Negated::Yes, "ssl_fc")]))),
            ("if ! a b", Some((Holds::IfAll, vec![term(Negated::Yes, "a"), term(Negated::No, "b")]))),
            (
                "unless { ssl_fc } or is_https",
                Some((Holds::UnlessAny, vec![term(Negated::No, "ssl_fc"), term(Negated::No, "is_https")])),
            ),
            ("if a b or c", None),
            ("if", None),
            ("when a", None),
        ] {
            let expect = expect.map(|(holds, terms)| Condition { holds, terms });
            assert_eq!(read(text), expect, "{text}");
        }
    }
}
