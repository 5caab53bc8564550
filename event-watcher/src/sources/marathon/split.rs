//! Cuts `{"apps": [ … ]}` into the texts of its apps while it arrives, so that a large list is never in memory whole.
//!
//! It looks at structure only: what an app's text means, and whether it is JSON at all, is for the caller.

/// The bytes are not an object with one list of apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShapeError {
    #[error("it is not an object with a list of apps")]
    NotAList,
    #[error("it ends before its end")]
    Truncated,
    #[error("it goes on behind its end")]
    Trailing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    KeyOrEnd,
    Key,
    InKey,
    Colon,
    Value,
    CommaOrEnd,
    ItemOrEnd,
    Item,
    ItemCommaOrEnd,
    End,
}

/// Which value is being cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Other,
    Apps,
}

#[derive(Debug)]
pub(crate) struct Splitter {
    place: Place,
    within: Within,
    n_lists: usize,
    key: Vec<u8>,
    escaped: bool,
    /// The value that is being cut out, as far as it has arrived.
    text: Vec<u8>,
    value: Option<Scan>,
}

/// Where inside a value the bytes are.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

enum Step {
    Inside,
    /// The value ends with this byte.
    EndsHere,
    /// The value has ended before this byte.
    EndedBefore,
}

impl Scan {
    fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    if self.depth == 0 {
                        return Step::EndsHere;
                    }
                }
                _ => {}
            }
            return Step::Inside;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth == 0 => return Step::EndedBefore,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::EndsHere;
                }
            }
            b',' | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => return Step::EndedBefore,
            _ => {}
        }
        Step::Inside
    }
}

impl Splitter {
    pub(crate) fn new() -> Self {
        Self {
            place: Place::Start,
            within: Within::Other,
            n_lists: 0,
            key: Vec::new(),
            escaped: false,
            text: Vec::new(),
            value: None,
        }
    }

    /// Takes what arrived and hands out the text of every app that it completes.
    pub(crate) fn push<E: From<ShapeError>>(
        &mut self,
        bytes: &[u8],
        mut app: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < bytes.len() {
            if let Some(scan) = &mut self.value {
                let start = at;
                let mut ended = false;
                while at < bytes.len() {
                    match scan.step(bytes[at]) {
                        Step::Inside => at += 1,
                        Step::EndsHere => {
                            at += 1;
                            ended = true;
                            break;
                        }
                        Step::EndedBefore => {
                            ended = true;
                            break;
                        }
                    }
                }
                let of_apps = self.within == Within::Apps;
                // An app that is whole in one piece is not copied.
                if ended && of_apps && self.text.is_empty() {
                    app(&bytes[start..at])?;
                } else if of_apps {
                    self.text.extend_from_slice(&bytes[start..at]);
                    if ended {
                        app(&self.text)?;
                        self.text.clear();
                    }
                }
                if ended {
                    self.value = None;
                    self.place = if of_apps { Place::ItemCommaOrEnd } else { Place::CommaOrEnd };
                }
                continue;
            }
            let byte = bytes[at];
            if self.place != Place::InKey && matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                at += 1;
                continue;
            }
            self.place = match (self.place, byte) {
                (Place::Start, b'{') => Place::KeyOrEnd,
                (Place::KeyOrEnd | Place::Key, b'"') => {
                    self.key.clear();
                    Place::InKey
                }
                (Place::KeyOrEnd | Place::CommaOrEnd, b'}') => Place::End,
                (Place::InKey, b'"') if !self.escaped => Place::Colon,
                (Place::InKey, byte) => {
                    self.escaped = byte == b'\\' && !self.escaped;
                    // Only one key matters, and it is short.
                    if self.key.len() < 16 {
                        self.key.push(byte);
                    }
                    Place::InKey
                }
                (Place::Colon, b':') => Place::Value,
                (Place::Value, b'[') if self.key == b"apps" => {
                    self.within = Within::Apps;
                    self.n_lists += 1;
                    Place::ItemOrEnd
                }
                (Place::ItemOrEnd | Place::ItemCommaOrEnd, b']') => {
                    self.within = Within::Other;
                    Place::CommaOrEnd
                }
                (Place::ItemCommaOrEnd, b',') => Place::Item,
                (Place::CommaOrEnd, b',') => Place::Key,
                (Place::Value | Place::ItemOrEnd | Place::Item, byte)
                    if !matches!(byte, b',' | b']' | b'}' | b':') =>
                {
                    self.value = Some(Scan::default());
                    // The byte belongs to the value.
                    continue;
                }
                (Place::End, _) => return Err(ShapeError::Trailing.into()),
                _ => return Err(ShapeError::NotAList.into()),
            };
            at += 1;
        }
        Ok(())
    }

    /// The bytes are over: was that all?
    pub(crate) fn finish(&self) -> Result<(), ShapeError> {
        match (self.place, self.n_lists) {
            (Place::End, 1) => Ok(()),
            (Place::End, _) => Err(ShapeError::NotAList),
            _ => Err(ShapeError::Truncated),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn split(packets: &[&[u8]]) -> Result<Vec<String>, ShapeError> {
        let mut splitter = Splitter::new();
        let mut apps = Vec::new();
        for packet in packets {
            splitter.push(packet, |app| {
                apps.push(String::from_utf8_lossy(app).into_owned());
                Ok::<_, ShapeError>(())
            })?;
        }
        splitter.finish().map(|()| apps)
    }

    #[test]
    fn lists_are_cut_into_apps() {
        let check = |text: &str, expect: &[&str]| {
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(split(&[text.as_bytes()]).unwrap(), expect, "{text}");
            assert_eq!(split(&bytes).unwrap(), expect, "{text}, byte by byte");
        };
        check(r#"{"apps":[]}"#, &[]);
        check(" { \"apps\" : [ {} , {\"a\":[1,{}]} ] } \n", &["{}", r#"{"a":[1,{}]}"#]);
        check(r#"{"x":{"apps":[1]},"y":null,"apps":[{"a":"]}\"\\"}],"z":"}"}"#, &[r#"{"a":"]}\"\\"}"#]);
        check(r#"{"apps":[1,"two",null]}"#, &["1", "\"two\"", "null"]);
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, expect) in [
            ("", ShapeError::Truncated),
            ("[]", ShapeError::NotAList),
            ("{}", ShapeError::NotAList),
            (r#"{"apps":{}}"#, ShapeError::NotAList),
            (r#"{"apps":[]"#, ShapeError::Truncated),
            (r#"{"apps":[{"#, ShapeError::Truncated),
            (r#"{"apps":[{}{}]}"#, ShapeError::NotAList),
            (r#"{"apps":[{},]}"#, ShapeError::NotAList),
            (r#"{"apps":[]}x"#, ShapeError::Trailing),
            (r#"{"apps":[],"apps":[]}"#, ShapeError::NotAList),
            ("<html>", ShapeError::NotAList),
        ] {
            assert_eq!(split(&[text.as_bytes()]), Err(expect), "{text}");
        }
    }

    proptest! {
        /// What serde_json takes as a list of values is cut as serde_json would, wherever the network cuts it.
        #[test]
        fn it_agrees_with_serde_json(
            bytes in proptest::collection::vec(proptest::sample::select(br#"{}[],:" \a1"#.to_vec()), 0..40),
            cut in 0_usize..60,
        ) {
            #[derive(serde::Deserialize)]
            struct List<'a> {
                #[serde(borrow)]
                apps: Vec<&'a RawValue>,
            }
            let text = format!("{{\"apps\":[{}]}}", String::from_utf8(bytes).unwrap());
            if let Ok(list) = serde_json::from_str::<List<'_>>(&text) {
                let expect: Vec<String> = list.apps.iter().map(|app| app.get().to_owned()).collect();
                let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
                prop_assert_eq!(split(&[head, tail]).unwrap(), expect);
            }
        }
    }
}
