//! A fault in somebody's input, told where its owner looks: the stats page and `waymark status`.
//!
//! A problem never removes the app it is about, and never touches another app.

use std::fmt;

use serde::Serialize;

use super::app::AppId;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// The app that it is about; `None` when it concerns the scheduler's answer as a whole.
    pub app: Option<AppId>,
    /// Where in the input, e.g. `portDefinitions[0].labels.VIP_0`.
    pub at: String,
    /// What is wrong.
    pub what: String,
    /// What happens instead, or what to do.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(app) = &self.app {
            write!(f, "{app}: ")?;
        }
        write!(f, "{}: {}", self.at, self.what)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}
