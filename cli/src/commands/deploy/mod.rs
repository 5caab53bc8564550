//! `waymark deploy …`: replacing an app by a new version of it while traffic flows.

pub mod bluegreen;
mod colours;
mod progress;
