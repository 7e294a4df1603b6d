//! Rows and ratios of a benchmark, as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Spread, ms};
use crate::shell::say;

/// What a benchmark found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    bench: &'static str,
    rows: Vec<Map<String, Value>>,
    ratios: BTreeMap<String, f64>,
}

/// A row under construction.
#[derive(Debug, Default)]
pub(super) struct Row(Map<String, Value>);

impl Row {
    pub(super) fn new(what: &str) -> Self {
        Self::default().text("what", what)
    }

    pub(super) fn text(mut self, column: &str, value: &str) -> Self {
        self.0.insert(column.to_owned(), value.into());
        self
    }

    /// A figure, kept to three decimals.
    pub(super) fn number(mut self, column: &str, value: f64) -> Self {
        self.0
            .insert(column.to_owned(), ((value * 1e3).round() / 1e3).into());
        self
    }

    /// Three columns of milliseconds.
    pub(super) fn spread(self, spread: Spread) -> Self {
        self.number("min_ms", ms(spread.min))
            .number("median_ms", ms(spread.median))
            .number("max_ms", ms(spread.max))
    }
}

impl Report {
    pub(super) fn new(bench: &'static str) -> Self {
        Self {
            bench,
            rows: Vec::new(),
            ratios: BTreeMap::new(),
        }
    }

    pub(super) fn row(&mut self, row: Row) {
        self.rows.push(row.0);
    }

    pub(super) fn ratio(&mut self, name: &str, value: f64) {
        self.ratios
            .insert(name.to_owned(), (value * 1e3).round() / 1e3);
    }

    /// The first text in a column.
    pub(super) fn text(&self, column: &str) -> Option<&str> {
        self.rows.iter().find_map(|row| row.get(column)?.as_str())
    }

    /// Prints the table, then the ratios.
    pub(super) fn print(&self) {
        let columns = self.columns();
        let width = |column: &str| {
            let cells = self.rows.iter().map(|row| cell(row, column).len());
            cells.chain([column.len()]).max().unwrap_or(0)
        };
        let line = |cells: Vec<String>| {
            let padded = columns.iter().zip(cells).map(|(column, cell)| {
                let width = width(column);
                if *column == "what" {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            say(padded.collect::<Vec<_>>().join("  ").trim_end());
        };
        line(columns.iter().map(|column| (*column).to_owned()).collect());
        for row in &self.rows {
            line(columns.iter().map(|column| cell(row, column)).collect());
        }
        for (name, ratio) in &self.ratios {
            say(format!("{name} = {ratio}"));
        }
    }

    /// The same as a section of a Markdown page.
    pub(super) fn markdown(&self) -> String {
        let columns = self.columns();
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("## {}\n\n", self.bench);
        text += &line(columns.iter().map(|column| (*column).to_owned()).collect());
        text += &line(vec!["---".to_owned(); columns.len()]);
        for row in &self.rows {
            text += &line(columns.iter().map(|column| cell(row, column)).collect());
        }
        if !self.ratios.is_empty() {
            text += "\n| ratio | |\n|---|---|\n";
        }
        for (name, ratio) in &self.ratios {
            text += &line(vec![format!("`{name}`"), ratio.to_string()]);
        }
        text
    }

    /// The names of the columns, what was measured first.
    fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = Vec::new();
        for column in self.rows.iter().flat_map(Map::keys) {
            if !columns.contains(&column.as_str()) {
                columns.push(column);
            }
        }
        columns.sort_by_key(|column| *column != "what");
        columns
    }
}

/// Writes reports as JSON: one object, or a list if there are several.
pub(super) fn write_json(reports: &[Report], file: &Path) -> Result<()> {
    let text = match reports {
        [one] => serde_json::to_string_pretty(one),
        several => serde_json::to_string_pretty(several),
    };
    let text = text.context("figures as JSON")? + "\n";
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn cell(row: &Map<String, Value>, column: &str) -> String {
    match row.get(column) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
