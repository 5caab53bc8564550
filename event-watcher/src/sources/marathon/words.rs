//! Words that many instances of a cluster have in common, each kept in memory once: hosts, agents, versions.
//!
//! What every instance has of its own (its id, when it started) is not looked at.

use std::collections::HashSet;
use std::sync::Arc;

use crate::catalog::App;

#[derive(Debug, Default)]
pub(crate) struct Words(HashSet<Arc<str>>);

impl Words {
    /// Makes the app share its words with those that were here before it. Instances that others hold already are left
    /// as they are.
    pub(crate) fn share(&mut self, app: &mut App) {
        self.put(&mut app.version);
        for instance in app.instances.iter_mut().filter_map(Arc::get_mut) {
            self.put(&mut instance.host);
            self.put(&mut instance.version);
            if let Some(agent) = &mut instance.agent {
                self.put(agent);
            }
            // A vector that grew while it was read has room for more than most instances have.
            instance.addresses.shrink_to_fit();
            instance.endpoints.shrink_to_fit();
        }
    }

    fn put(&mut self, word: &mut Arc<str>) {
        match self.0.get(word) {
            Some(known) => *word = Arc::clone(known),
            None => {
                self.0.insert(Arc::clone(word));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_definition;

    #[test]
    fn equal_words_are_one() {
        let task = |n: usize| serde_json::json!({"id": format!("a.{n}"), "host": "10.0.0.1", "slaveId": "S1", "version": "v1"});
        let json = serde_json::json!({"id": "/a", "version": "v1", "tasks": [task(0), task(1)]});
        let read = || read_definition(&json.to_string(), "marathon").unwrap().app;
        let (mut first, mut second) = (read(), read());
        let mut words = Words::default();
        words.share(&mut first);
        words.share(&mut second);
        assert_eq!(first, second);
        for instance in first.instances.iter().chain(&second.instances) {
            assert!(Arc::ptr_eq(&instance.host, &first.instances[0].host));
            assert!(Arc::ptr_eq(&instance.version, &first.version));
            assert!(
                instance
                    .agent
                    .as_ref()
                    .zip(first.instances[1].agent.as_ref())
                    .is_some_and(|(a, b)| Arc::ptr_eq(a, b))
            );
        }
    }
}
