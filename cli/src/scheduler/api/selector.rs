//! Marathon's label selectors: `a==b, c!=d, e in (f, g), h notin (i), j`, with `\` before special characters.
//!
//! Not here: where a selector comes from.

use std::collections::BTreeMap;

#[derive(Debug, PartialEq, Eq)]
pub struct Selector(Vec<Rule>);

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    key: String,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    Exists,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Equal,
    NotEqual,
    Open,
    Close,
    Comma,
}

impl Selector {
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let mut rest = tokens.as_slice();
        let mut rules = Vec::new();
        while !rest.is_empty() {
            let (rule, after) =
                rule(rest).ok_or_else(|| format!("Can not parse label selector '{text}'."))?;
            rules.push(rule);
            rest = match after {
                [] => after,
                [Token::Comma, more @ ..] if !more.is_empty() => more,
                _ => return Err(format!("Can not parse label selector '{text}'.")),
            };
        }
        Ok(Self(rules))
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|rule| match (labels.get(&rule.key), &rule.test) {
            (found, Test::Exists) => found.is_some(),
            (found, Test::In(values)) => found.is_some_and(|value| values.contains(value)),
            (found, Test::NotIn(values)) => found.is_some_and(|value| !values.contains(value)),
        })
    }
}

fn rule(tokens: &[Token]) -> Option<(Rule, &[Token])> {
    let [Token::Word(key), rest @ ..] = tokens else { return None };
    let rule = |test| Rule { key: key.clone(), test };
    match rest {
        [Token::Equal, Token::Word(value), rest @ ..] => Some((rule(Test::In(vec![value.clone()])), rest)),
        [Token::NotEqual, Token::Word(value), rest @ ..] => {
            Some((rule(Test::NotIn(vec![value.clone()])), rest))
        }
        [Token::Word(operator), Token::Open, rest @ ..] => {
            let (values, rest) = values(rest)?;
            match operator.as_str() {
                "in" => Some((rule(Test::In(values)), rest)),
                "notin" => Some((rule(Test::NotIn(values)), rest)),
                _ => None,
            }
        }
        [] | [Token::Comma, ..] => Some((rule(Test::Exists), rest)),
        _ => None,
    }
}

fn values(mut tokens: &[Token]) -> Option<(Vec<String>, &[Token])> {
    let mut values = Vec::new();
    loop {
        match tokens {
            [Token::Word(value), Token::Comma, rest @ ..] => {
                values.push(value.clone());
                tokens = rest;
            }
            [Token::Word(value), Token::Close, rest @ ..] => {
                values.push(value.clone());
                return Some((values, rest));
            }
            [Token::Close, rest @ ..] if values.is_empty() => return Some((values, rest)),
            _ => return None,
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            ' ' | '\t' => {
                chars.next();
            }
            '(' | ')' | ',' => {
                chars.next();
                tokens.push(match c {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    _ => Token::Comma,
                });
            }
            '=' | '!' => {
                chars.next();
                if chars.next() != Some('=') {
                    return Err(format!("Can not parse label selector '{text}'."));
                }
                tokens.push(if c == '=' { Token::Equal } else { Token::NotEqual });
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if matches!(c, ' ' | '\t' | '(' | ')' | ',' | '=' | '!') {
                        break;
                    }
                    chars.next();
                    if c == '\\' {
                        word.extend(chars.next());
                    } else {
                        word.push(c);
                    }
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_as_marathon() {
        let labels: BTreeMap<String, String> =
            [("a", "1"), ("tier", "web"), ("x,y", "z")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, expect) in [
            ("", Ok(true)),
            ("a", Ok(true)),
            ("b", Ok(false)),
            ("a==1", Ok(true)),
            ("a == 2", Ok(false)),
            ("a!=2", Ok(true)),
            ("b!=2", Ok(false)),
            ("tier in (db, web)", Ok(true)),
            ("tier notin (db,web)", Ok(false)),
            ("a==1, tier==web", Ok(true)),
            ("a==1,tier==db", Ok(false)),
            (r"x\,y==z", Ok(true)),
            ("a=1", Err(())),
            ("a in 1", Err(())),
            ("a==1,", Err(())),
            ("==1", Err(())),
            ("a in (1", Err(())),
        ] {
            let result = Selector::parse(text).map(|s| s.matches(&labels)).map_err(|_| ());
            assert_eq!(result, expect, "{text}");
        }
    }
}
