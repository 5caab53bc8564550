//! Which schedulers and files are watched, as flags name them: `NAME=URL[,URL…]` and `NAME=FILE`.
//!
//! It reads no file: credentials stay where they are until the watcher needs them.

use std::path::PathBuf;

use url::Url;

use super::Config;
use crate::failure::{Failure, without_userinfo};

/// The name of the only scheduler, and of the only file.
const SCHEDULER: &str = "marathon";
const FILE: &str = "static";

/// Everything that apps come from, in the order in which they win.
#[derive(Clone, Debug, PartialEq)]
pub struct Sources {
    pub schedulers: Vec<WatchedScheduler>,
    /// Names and files.
    pub files: Vec<(String, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WatchedScheduler {
    pub name: String,
    /// May carry user and password.
    pub members: Vec<Url>,
    pub ca: Option<PathBuf>,
    pub credentials: Option<Credentials>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Credentials {
    /// `USER:PASSWORD`.
    Basic(PathBuf),
    Token(PathBuf),
    ServiceAccount(PathBuf),
}

impl Config {
    pub fn sources(&self) -> Result<Sources, Failure> {
        let mut schedulers: Vec<WatchedScheduler> = Vec::new();
        for text in &self.marathon {
            let (name, url) = named(text);
            if name.is_some() || schedulers.is_empty() {
                let name = name.unwrap_or(SCHEDULER).to_owned();
                schedulers.push(WatchedScheduler { name, members: Vec::new(), ca: None, credentials: None });
            }
            let parsed =
                Url::parse(url).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
            let member = parsed.ok_or_else(|| {
                Failure::usage(format!("bad scheduler address {:?}", without_userinfo(text))).hint(
                    "write it as http://HOST:PORT, or NAME=http://HOST:PORT for each of several schedulers",
                )
            })?;
            if let Some(scheduler) = schedulers.last_mut() {
                scheduler.members.push(member);
            }
        }
        let mut files: Vec<(String, PathBuf)> = Vec::new();
        for text in &self.static_files {
            let (name, file) = named(text);
            let name = name.map_or_else(|| nth(FILE, files.len()), str::to_owned);
            files.push((name, file.into()));
        }
        let names = || schedulers.iter().map(|s| &s.name).chain(files.iter().map(|(name, _)| name));
        if let Some(twice) =
            names().enumerate().find(|(n, name)| names().take(*n).any(|known| known == *name))
        {
            return Err(Failure::usage(format!("two sources have the name {:?}", twice.1))
                .hint("give each one its own: --marathon NAME=URL, --static NAME=FILE"));
        }
        let watch = &self.watch;
        assign(&mut schedulers, &watch.ca, |scheduler, file| scheduler.ca = Some(file))?;
        type Kind = fn(PathBuf) -> Credentials;
        let kinds: [(&[String], Kind); 3] = [
            (&watch.credentials, Credentials::Basic),
            (&watch.token_file, Credentials::Token),
            (&watch.service_account, Credentials::ServiceAccount),
        ];
        for (texts, kind) in kinds {
            assign(&mut schedulers, texts, |scheduler, file| scheduler.credentials = Some(kind(file)))?;
        }
        Ok(Sources { schedulers, files })
    }

    /// The same, for people to read: whoever may see it need not know a password.
    pub(super) fn without_secrets(&self) -> Self {
        let marathon = self.marathon.iter().map(|text| without_userinfo(text)).collect();
        Self { marathon, ..self.clone() }
    }
}

/// A file with a name is one scheduler's, without one it is everybody's who has none yet.
fn assign(
    schedulers: &mut [WatchedScheduler],
    texts: &[String],
    mut set: impl FnMut(&mut WatchedScheduler, PathBuf),
) -> Result<(), Failure> {
    for text in texts {
        let (name, file) = named(text);
        let mut found = false;
        for scheduler in schedulers.iter_mut().filter(|s| name.is_none_or(|name| s.name == name)) {
            set(scheduler, file.into());
            found = true;
        }
        if let (false, Some(name)) = (found, name) {
            return Err(Failure::usage(format!("{text:?}: there is no scheduler {name:?}"))
                .hint("name one with --marathon NAME=URL"));
        }
    }
    Ok(())
}

/// `NAME=REST`, where the name is a word.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if is_name(name) => (Some(name), rest),
        _ => (None, text),
    }
}

/// Names become parts of file names and metrics.
fn is_name(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !text.is_empty() && text.len() <= 64 && text.bytes().all(good)
}

fn nth(name: &str, n_before: usize) -> String {
    if n_before == 0 { name.to_owned() } else { format!("{name}-{}", n_before + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Mode;

    fn sources(marathon: &[&str], files: &[&str], watch: super::super::Watch) -> Result<Sources, Failure> {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let defaults = Config::defaults(Mode::Serve);
        Config { marathon: texts(marathon), static_files: texts(files), watch, ..defaults }.sources()
    }

    fn watch() -> super::super::Watch {
        Config::defaults(Mode::Serve).watch
    }

    #[test]
    fn addresses_are_grouped_by_name() {
        for (marathon, expect) in [
            (&["http://a:1", "http://b:2"][..], "marathon 2"),
            (&["one=http://a:1", "http://b:2", "two=https://c/m?x=1"], "one 2, two 1"),
            (&["http://a:1", "two=http://b"], "marathon 1, two 1"),
            (&["http://a/?x=http://b"], "marathon 1"),
            (&[], ""),
        ] {
            let found = sources(marathon, &[], watch()).unwrap();
            let shown = found.schedulers.iter().map(|s| format!("{} {}", s.name, s.members.len()));
            assert_eq!(shown.collect::<Vec<_>>().join(", "), expect, "{marathon:?}");
        }
        let found = sources(&[], &["/x.toml", "/y.toml", "old=/z.json"], watch()).unwrap();
        let names: Vec<&str> = found.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["static", "static-2", "old"]);
    }

    #[test]
    fn files_go_to_the_scheduler_that_they_name() {
        let named = super::super::Watch {
            ca: vec!["/all.pem".into(), "two=/two.pem".into()],
            token_file: vec!["two=/token".into()],
            ..watch()
        };
        let found = sources(&["one=http://a", "two=http://b"], &[], named).unwrap();
        assert_eq!(found.schedulers[0].ca, Some("/all.pem".into()));
        assert_eq!(found.schedulers[1].ca, Some("/two.pem".into()));
        assert_eq!(found.schedulers[0].credentials, None);
        assert_eq!(found.schedulers[1].credentials, Some(Credentials::Token("/token".into())));
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        let stray = super::super::Watch { ca: vec!["three=/x".into()], ..watch() };
        for (marathon, watch, expect) in [
            (&["ftp://user:s3cret@a"][..], watch(), "bad scheduler address \"ftp://***@a\""),
            (&["one=http://a", "one=http://b"], watch(), "two sources have the name \"one\""),
            (&["one=http://a"], stray, "no scheduler \"three\""),
        ] {
            let failure = sources(marathon, &[], watch).unwrap_err().to_string();
            assert!(failure.contains(expect) && !failure.contains("s3cret"), "{failure}");
        }
        let marathon = vec!["one=http://user:s3cret@a:80/x@y".to_owned()];
        let toml = Config { marathon, ..Config::defaults(Mode::Serve) }.to_toml().unwrap();
        assert!(toml.contains("one=http://***@a:80/x@y") && !toml.contains("s3cret"), "{toml}");
    }
}
