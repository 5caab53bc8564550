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
        Self { what: one_line(&what.into()), hint: None, code: FAILED }
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
    fn control_characters_of_a_server_do_not_reach_the_terminal() {
        assert_eq!(Failure::new("a\x1b[31mb\nc").to_string(), "a[31mb c");
    }
}
