//! What commands print: aligned tables, colour on terminals only, JSON, and a progress line.
//!
//! It knows nothing of apps or planes.

use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Writes to standard output. A reader that went away (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::chain("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

pub fn print_line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::chain("cannot write JSON", &e))?;
    print_line(&text)
}

/// Rows under a header, columns aligned, two spaces apart. Cells are cleaned of control characters.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| cell.chars().filter(|c| !c.is_control()).collect();
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    pub fn render(&self, style: Style) -> String {
        let n_columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..n_columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = width - cell.chars().count() + 2;
                line.push_str(cell);
                line.push_str(&" ".repeat(padding));
            }
            let line = line.trim_end();
            text.push_str(&if index == 0 { style.bold(line) } else { line.to_owned() });
            text.push('\n');
        }
        text
    }
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    coloured: Coloured,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coloured {
    Yes,
    No,
}

impl Style {
    pub const PLAIN: Self = Self { coloured: Coloured::No };

    pub fn of_stdout() -> Self {
        Self::of(&std::io::stdout())
    }

    pub fn of_stderr() -> Self {
        Self::of(&std::io::stderr())
    }

    /// <https://no-color.org>: a variable that is present and not empty switches colour off.
    fn of(stream: &impl IsTerminal) -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let coloured = if stream.is_terminal() && !forbidden { Coloured::Yes } else { Coloured::No };
        Self { coloured }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self.coloured {
            Coloured::Yes => format!("\x1b[{code}m{text}\x1b[0m"),
            Coloured::No => text.to_owned(),
        }
    }
}

/// Says on standard error what is being waited for: one line rewritten on a terminal, otherwise a line per change.
#[derive(Debug, Default)]
pub struct Progress {
    last: String,
}

impl Progress {
    pub fn say(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        text.clone_into(&mut self.last);
        let mut stderr = std::io::stderr().lock();
        // A closed standard error costs the progress line, nothing else.
        let _ = if stderr.is_terminal() {
            write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{text}")
        };
    }

    pub fn done(self) {
        let mut stderr = std::io::stderr().lock();
        if stderr.is_terminal() && !self.last.is_empty() {
            let _ = writeln!(stderr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&["ID", "N"]);
        table.row(["/dcos-101/app2".to_owned(), "2".to_owned()]);
        table.row(["/é\x1b".to_owned(), String::new()]);
        assert_eq!(table.render(Style::PLAIN), "ID              N\n/dcos-101/app2  2\n/é\n");
    }

    #[test]
    fn colour_is_an_escape_around_the_text_or_nothing() {
        assert_eq!(Style { coloured: Coloured::Yes }.bold("x"), "\x1b[1mx\x1b[0m");
        assert_eq!(Style::PLAIN.bold("x"), "x");
    }
}
