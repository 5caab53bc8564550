//! The words of `app update`: `key=value`, as `dcos marathon app update` takes them.
//!
//! It knows no schema: a value is JSON when it parses as JSON and otherwise text.

use serde_json::{Map, Value};

use crate::failure::Failure;

/// Keys whose values are text even when they look like JSON: `cmd=true` is a command.
const TEXT_KEYS: [&str; 7] = ["id", "cmd", "user", "executor", "killSelection", "role", "version"];

pub fn parse(words: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut object = Map::new();
    for word in words {
        let (key, text) = word
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::usage(format!("{word:?} is not key=value")).hint("e.g. instances=2"))?;
        if object.insert(key.to_owned(), value(key, text)?).is_some() {
            return Err(Failure::usage(format!("{key} was given more than once")));
        }
    }
    Ok(object)
}

fn value(key: &str, text: &str) -> Result<Value, Failure> {
    let parsed = serde_json::from_str::<Value>(text);
    if TEXT_KEYS.contains(&key) {
        return Ok(match parsed {
            Ok(value @ (Value::String(_) | Value::Null)) => value,
            _ => Value::String(text.to_owned()),
        });
    }
    match parsed {
        Ok(value) => Ok(value),
        // Whoever opens a brace means JSON.
        Err(error) if text.trim_start().starts_with(['{', '[']) => {
            Err(Failure::usage(format!("the value of {key} is no JSON: {error}"))
                .hint(format!("quote it for the shell: '{key}={{\"NAME\": \"value\"}}'")))
        }
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_become_an_object() {
        for (words, expect) in [
            (&["instances=2"][..], json!({"instances": 2})),
            (&["cpus=0.5", "mem=64"], json!({"cpus": 0.5, "mem": 64})),
            (&["cmd=sleep 100"], json!({"cmd": "sleep 100"})),
            (&["cmd=true"], json!({"cmd": "true"})),
            (&["cmd=\"echo\""], json!({"cmd": "echo"})),
            (&["cmd=null"], json!({"cmd": null})),
            (&["id=7"], json!({"id": "7"})),
            (&["env={\"A\":\"b=c\"}"], json!({"env": {"A": "b=c"}})),
            (&["labels={}"], json!({"labels": {}})),
            (&["requirePorts=true"], json!({"requirePorts": true})),
            (&["x=a=b"], json!({"x": "a=b"})),
            (&[], json!({})),
        ] {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            assert_eq!(Value::Object(parse(&words).unwrap()), expect, "{words:?}");
        }
    }

    #[test]
    fn what_is_no_word_is_refused() {
        for words in [&["instances"][..], &["=2"], &["env={\"A\"}"], &["mem=1", "mem=2"]] {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            assert_eq!(parse(&words).unwrap_err().code(), 2, "{words:?}");
        }
    }
}
