//! The integration tests: one binary, one module for each behaviour, everything from outside.

mod architecture;
mod tutorial;
