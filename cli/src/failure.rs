//! The one error that reaches a person: what went wrong in a line, what to do about it, and the exit code.
//!
//! Library crates keep their own error enums; they become this only here, at the edge.

use std::error::Error;
use std::fmt;
use std::io::Write;

/// Exit code of a command that was understood and failed.
const FAILED: u8 = 1;
/// Exit code of a command line, file or environment that was not understood. Nothing was started.
const USAGE: u8 = 2;

#[derive(Debug)]
pub struct Failure {
    what: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: without_userinfo(&one_line(&what.into())), hint: None, code: FAILED }
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self { code: USAGE, ..Self::new(what) }
    }

    /// `doing`, then every error of the chain, outermost first.
    pub fn chain(doing: impl fmt::Display, error: &dyn Error) -> Self {
        let mut what = format!("{doing}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !what.ends_with(&text) {
                what.push_str(": ");
                what.push_str(&text);
            }
            source = cause.source();
        }
        Self::new(what)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    pub fn code(&self) -> u8 {
        self.code
    }

    pub fn what(&self) -> &str {
        &self.what
    }

    /// Takes clap's report apart: its first paragraph is what is wrong, its tip or usage what to do.
    pub fn from_clap(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let mut paragraphs = text.split("\n\n");
        let what = paragraphs.next().unwrap_or_default();
        let what = what.strip_prefix("error: ").unwrap_or(what);
        let rest: Vec<&str> = paragraphs.map(str::trim).collect();
        let hint = rest
            .iter()
            .find_map(|p| p.strip_prefix("tip: "))
            .or_else(|| rest.iter().copied().find(|p| p.starts_with("[possible")))
            .or_else(|| rest.iter().copied().find(|p| p.starts_with("Usage:")))
            .unwrap_or("see waymark --help");
        Self::usage(what).hint(hint)
    }

    /// Prints to standard error: a line `error: …`, then a line `hint: …` when there is one.
    pub fn report(&self) {
        let mut stderr = std::io::stderr().lock();
        let style = crate::output::Style::of_stderr();
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(stderr, "{} {}", style.red("error:"), self.what);
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "{} {hint}", style.bold("hint:"));
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

/// Line breaks become spaces, other control characters vanish: the text may come from a server.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).collect()
}

/// `http://user:password@host` without what is secret in it, wherever a text has that.
pub(crate) fn without_userinfo(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        shown.push_str(before);
        let authority = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
        // A password with a slash makes a wrong address, which is shown when it is refused.
        let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit() || b == b']');
        let host_ends_here = authority.rsplit_once(':').is_none_or(|(_, port)| is_port(port));
        let userinfo = match authority.rfind('@') {
            None if host_ends_here => None,
            None => url.split_whitespace().next().and_then(|url| url.rfind('@')),
            found => found,
        };
        rest = match userinfo {
            Some(at) => {
                shown.push_str("***");
                &url[at..]
            }
            None => url,
        };
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::CommandLine;

    #[test]
    fn clap_errors_become_one_line_and_a_hint() {
        for (line, what, hint) in [
            (
                "app scale",
                "required arguments were not provided: <ID> <INSTANCES>",
                "Usage: waymark app scale",
            ),
            ("app lisst", "unrecognized subcommand 'lisst'", "similar subcommand"),
            ("dev --http-listn x", "unexpected argument '--http-listn'", "'--http-listen'"),
            ("serve --planes htp", "invalid value 'htp'", "http"),
        ] {
            let words = std::iter::once("waymark").chain(line.split_whitespace());
            let failure = Failure::from_clap(&CommandLine::try_parse_from(words).expect_err(line));
            assert_eq!(failure.code(), 2);
            assert!(failure.what.contains(what), "{line}: {failure:?}");
            assert!(failure.hint.as_ref().is_some_and(|h| h.contains(hint)), "{line}: {failure:?}");
            assert!(!failure.what.contains('\n'));
        }
    }

    #[test]
    fn passwords_in_addresses_are_shown_nowhere() {
        for (text, expect) in [
            (
                "no scheduler at http://u:s3cret@h:80/x@y: refused",
                "no scheduler at http://***@h:80/x@y: refused",
            ),
            ("invalid value 'http://u:s3cret@bad host' for it", "invalid value 'http://***@bad host' for it"),
            ("http://a/?q=1 redirects to https://s3cret@b", "http://a/?q=1 redirects to https://***@b"),
            ("bad address http://u:s3/cret@h", "bad address http://***@h"),
            ("http://[::1]:80/a@b and http://h/", "http://[::1]:80/a@b and http://h/"),
            ("nothing to hide @ all", "nothing to hide @ all"),
        ] {
            assert_eq!(Failure::new(text).what, expect);
        }
        let words = ["waymark", "app", "list", "--marathon", "http://u:s3cret@bad host"];
        let failure = Failure::from_clap(&CommandLine::try_parse_from(words).expect_err("a bad address"));
        assert!(!failure.to_string().contains("s3cret"), "{failure}");
    }

    #[test]
    fn control_characters_of_a_server_do_not_reach_the_terminal() {
        assert_eq!(Failure::new("a\x1b[31mb\nc").to_string(), "a[31mb c");
    }
}
