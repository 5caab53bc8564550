//! Placement constraints, judged on the one agent there is.
//!
//! Not here: resources (`launch`).

use regex::Regex;

/// `[field, operator, value?]`, understood.
#[derive(Clone, Debug)]
pub struct Constraint {
    field: String,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Unique,
    Cluster(Option<String>),
    GroupBy,
    Like(Regex),
    Unlike(Regex),
    MaxPer(usize),
    Is(String),
}

impl Constraint {
    /// Errors say what is wrong in Marathon's terms.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let (field, operator, value) = match words {
            [field, operator] => (field, operator, None),
            [field, operator, value] => (field, operator, Some(value.as_str()).filter(|v| !v.is_empty())),
            _ => return Err("expected [field, operator] or [field, operator, value]".into()),
        };
        let count = |text: &str| text.parse().map_err(|_| format!("{operator}: '{text}' is not a number"));
        let needed = || value.ok_or_else(|| format!("{operator} needs a value"));
        // As Java's `matches`, the whole value must fit.
        let pattern = || -> Result<Regex, String> {
            let text = value.ok_or_else(|| format!("A regular expression value is needed for {operator}"))?;
            Regex::new(&format!("^(?:{text})$"))
                .map_err(|_| format!("'{text}' is not a valid regular expression"))
        };
        let rule = match operator.as_str() {
            "UNIQUE" => Rule::Unique,
            "CLUSTER" => Rule::Cluster(value.map(str::to_owned)),
            "GROUP_BY" => {
                value.map(count).transpose()?;
                Rule::GroupBy
            }
            "LIKE" => Rule::Like(pattern()?),
            "UNLIKE" => Rule::Unlike(pattern()?),
            "MAX_PER" => Rule::MaxPer(count(needed()?)?),
            "IS" => Rule::Is(needed()?.to_owned()),
            _ => {
                return Err("must be one of UNIQUE, CLUSTER, GROUP_BY, LIKE, UNLIKE, MAX_PER or IS".into());
            }
        };
        Ok(Self { field: field.clone(), rule })
    }

    /// Whether one more instance may be placed where `n_placed` are already. `attribute` knows the agent's.
    pub fn allows(&self, n_placed: usize, attribute: impl Fn(&str) -> Option<String>) -> bool {
        let Some(value) = attribute(&self.field) else {
            // An agent without the attribute is unlike everything, and like nothing.
            return matches!(self.rule, Rule::Unlike(_));
        };
        match &self.rule {
            Rule::Unique => n_placed == 0,
            Rule::MaxPer(max) => n_placed < *max,
            Rule::Cluster(wanted) => wanted.as_ref().is_none_or(|wanted| *wanted == value),
            Rule::Is(wanted) => *wanted == value,
            // With one agent there is one group, which is always the smallest.
            Rule::GroupBy => true,
            Rule::Like(pattern) => pattern.is_match(&value),
            Rule::Unlike(pattern) => !pattern.is_match(&value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Constraint, String> {
        Constraint::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn on_one_agent() {
        let attribute = |field: &str| match field {
            "hostname" => Some("srv2.example".to_owned()),
            "rack" => Some("r1".to_owned()),
            _ => None,
        };
        for (text, n_placed, expect) in [
            ("hostname UNIQUE", 0, true),
            ("hostname UNIQUE", 1, false),
            ("hostname MAX_PER 2", 1, true),
            ("hostname MAX_PER 2", 2, false),
            ("hostname CLUSTER srv2.example", 5, true),
            ("hostname CLUSTER other", 0, false),
            ("hostname GROUP_BY", 9, true),
            ("hostname GROUP_BY 3", 9, true),
            ("hostname LIKE srv2.*", 0, true),
            ("hostname LIKE srv2", 0, false),
            ("hostname UNLIKE srv2.*", 0, false),
            ("hostname UNLIKE srv1.*", 0, true),
            ("rack IS r1", 0, true),
            ("rack LIKE r[23]", 0, false),
            ("zone UNIQUE", 0, false),
            ("zone LIKE .*", 0, false),
            ("zone UNLIKE .*", 0, true),
        ] {
            let constraint = parse(text).expect(text);
            assert_eq!(constraint.allows(n_placed, attribute), expect, "{text} after {n_placed}");
        }
    }

    #[test]
    fn refusals() {
        for text in
            ["hostname", "hostname NEAR", "a LIKE", "a LIKE [", "a MAX_PER", "a MAX_PER x", "a IS", "a b c d"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
