//! Reads the members of a JSON object and collects what is wrong with them in play-json's words. `null` is the
//! same as absent.
//!
//! Not here: which members an object has.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::EnvValue;

/// One entry of the `details` of Marathon's 422.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    pub path: String,
    pub errors: Vec<String>,
}

impl FieldError {
    pub fn new(path: impl Into<String>, error: impl Into<String>) -> Self {
        Self { path: path.into(), errors: vec![error.into()] }
    }
}

pub(super) fn or_root(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// Reads the members of one object and collects what is wrong in play-json's words.
pub struct Fields<'a> {
    pub(super) path: String,
    pub(super) map: &'a Map<String, Value>,
    pub(super) errors: &'a mut Vec<FieldError>,
}

impl<'a> Fields<'a> {
    pub fn of(value: &'a Value, path: &str, errors: &'a mut Vec<FieldError>) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self { path: path.to_owned(), map, errors }),
            _ => {
                errors.push(FieldError::new(or_root(path), "error.expected.jsobject"));
                None
            }
        }
    }

    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let result = read(self.value(key)?);
        if result.is_none() {
            self.errors.push(FieldError::new(format!("{}/{key}", self.path), expected));
        }
        result
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        self.read(key, "error.expected.jsstring", |value| value.as_str().map(str::to_owned))
    }

    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        self.read(key, "error.expected.jsboolean", Value::as_bool)
    }

    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.read(key, "error.expected.jsnumber", Value::as_f64)
    }

    pub fn bounded(&mut self, key: &str, max: u64) -> Option<u64> {
        let value = self.value(key)?;
        integer(value, &format!("{}/{key}", self.path), self.errors, max)
    }

    pub fn unsigned(&mut self, key: &str) -> Option<u32> {
        // Seconds and counts: Marathon's are 32-bit signed.
        self.bounded(key, i32::MAX as u64).map(|value| value as u32)
    }

    pub fn choice(&mut self, key: &str, of: &[&str]) -> Option<String> {
        let text = self.text(key)?;
        if of.contains(&text.as_str()) {
            return Some(text);
        }
        self.errors.push(FieldError::new(format!("{}/{key}", self.path), "error.unknown.enum.literal"));
        None
    }

    pub fn port(&mut self, key: &str) -> Option<u16> {
        self.bounded(key, u16::MAX.into()).map(|port| port as u16)
    }

    pub fn required_text(&mut self, key: &str) -> Option<String> {
        if self.value(key).is_none() {
            self.missing(key);
        }
        self.text(key)
    }

    pub fn missing(&mut self, key: &str) {
        let object = Value::Object(self.map.clone());
        self.errors.push(undefined(&self.path, key, &object));
    }

    pub fn error(&mut self, key: &str, error: &str) {
        self.errors.push(FieldError::new(format!("{}/{key}", self.path), error));
    }

    /// The members besides `known`, without nulls.
    pub fn others(&self, known: &[&str]) -> Map<String, Value> {
        let is_other = |(key, value): &(&String, &Value)| !known.contains(&key.as_str()) && !value.is_null();
        self.map.iter().filter(is_other).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub fn object(&mut self, key: &str) -> Option<&'a Map<String, Value>> {
        self.read(key, "error.expected.jsobject", Value::as_object)
    }

    pub fn nested<T>(&mut self, key: &str, read: impl FnOnce(&mut Fields<'_>) -> Option<T>) -> Option<T> {
        let map = self.object(key)?;
        read(&mut Fields { path: format!("{}/{key}", self.path), map, errors: self.errors })
    }

    pub fn list<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&'a Value, &str, &mut Vec<FieldError>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.read(key, "error.expected.jsarray", Value::as_array)?;
        let path = format!("{}/{key}", self.path);
        let read_one = |(index, item)| read(item, &format!("{path}({index})"), &mut *self.errors);
        Some(items.iter().enumerate().filter_map(read_one).collect())
    }

    pub fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.list(key, text)
    }

    pub fn text_map(&mut self, key: &str) -> Option<BTreeMap<String, String>> {
        let map = self.object(key)?;
        let path = format!("{}/{key}", self.path);
        let mut read = BTreeMap::new();
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            if let Some(text) = plain_text(value, &format!("{path}/{key}"), self.errors) {
                read.insert(key.clone(), text);
            }
        }
        Some(read)
    }

    /// `env`: texts, and references to secrets.
    pub fn environment(&mut self, key: &str) -> Option<BTreeMap<String, EnvValue>> {
        let map = self.object(key)?;
        let path = format!("{}/{key}", self.path);
        let mut read = BTreeMap::new();
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            let value = match value {
                Value::Object(inner) => match inner.get("secret").and_then(Value::as_str) {
                    Some(secret) => EnvValue::Secret { secret: secret.to_owned() },
                    None => {
                        self.errors
                            .push(FieldError::new(format!("{path}/{key}/secret"), "error.path.missing"));
                        continue;
                    }
                },
                other => match plain_text(other, &format!("{path}/{key}"), self.errors) {
                    Some(text) => EnvValue::Text(text),
                    None => continue,
                },
            };
            read.insert(key.clone(), value);
        }
        Some(read)
    }
}

/// Marathon 1.4 took numbers and booleans in `env` and `labels` and wrote them as text.
fn plain_text(value: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        other => text(other, path, errors),
    }
}

/// Play-json's words for a member that must be there.
pub fn undefined(path: &str, key: &str, object: &Value) -> FieldError {
    FieldError::new(format!("{path}/{key}"), format!("'{key}' is undefined on object: {object}"))
}

pub(super) fn text(value: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<String> {
    if value.as_str().is_none() {
        errors.push(FieldError::new(path, "error.expected.jsstring"));
    }
    value.as_str().map(str::to_owned)
}

pub(super) fn texts(value: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Vec<String>> {
    let Value::Array(items) = value else {
        errors.push(FieldError::new(path, "error.expected.jsarray"));
        return None;
    };
    items.iter().enumerate().map(|(index, item)| text(item, &format!("{path}({index})"), errors)).collect()
}

pub(super) fn integer(value: &Value, path: &str, errors: &mut Vec<FieldError>, max: u64) -> Option<u64> {
    // `2.0` is an integer to Marathon's JSON library.
    let whole = value.as_u64().or_else(|| {
        value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f <= max as f64).map(|f| f as u64)
    });
    match whole {
        Some(number) if number <= max => return whole,
        Some(_) => errors.push(FieldError::new(path, format!("error.max: {max}"))),
        None if value.as_f64().is_some_and(|f| f < 0.0) => {
            errors.push(FieldError::new(path, format!("got {value}, expected 0 or more")));
        }
        None if value.is_number() => {
            errors.push(FieldError::new(path, "error.expected.jsnumber: a whole one"))
        }
        None => errors.push(FieldError::new(path, "error.expected.jsnumber")),
    }
    None
}
