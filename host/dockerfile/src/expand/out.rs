//! The output of an expansion: text with a limit, split into words.

use crate::error::Fault;

/// The output of an expansion.
#[derive(Debug)]
pub(super) struct Out {
    text: String,
    words: Vec<String>,
    word: String,
    limit: usize,
}

impl Out {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            text: String::new(),
            words: Vec::new(),
            word: String::new(),
            limit,
        }
    }

    /// Appends text whose whitespace ends words.
    pub(super) fn push_str(&mut self, text: &str) -> Result<(), Fault> {
        for c in text.chars() {
            if !c.is_whitespace() {
                self.word.push(c);
            } else if !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
            }
        }
        self.grow(text)
    }

    /// Appends text whose whitespace does not end words.
    pub(super) fn push_quoted(&mut self, text: &str) -> Result<(), Fault> {
        self.word.push_str(text);
        self.grow(text)
    }

    fn grow(&mut self, text: &str) -> Result<(), Fault> {
        if self.text.len() + text.len() > self.limit {
            return Err(too_long(self.limit));
        }
        self.text.push_str(text);
        Ok(())
    }

    pub(super) fn finish(mut self) -> (String, Vec<String>) {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        (self.text, self.words)
    }
}

pub(super) fn too_long(limit: usize) -> Fault {
    Fault::new(format!("the value is longer than {limit} bytes"))
}
