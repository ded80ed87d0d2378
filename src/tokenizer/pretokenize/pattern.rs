//! Cuts by a regular expression that came with a tokenizer.json and has no scanner.
//!
//! Such an expression may look ahead, so a backtracking engine runs it. The engine stops after [`STEPS`] for one match, and
//! the tokens of a text together have [`TIME`]: an expression that takes longer is an error, and no text is lost.

use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};

use crate::error::{Error, Result, quoted};

/// Longest expression in bytes.
const LONGEST: usize = 1 << 16;
/// Times that the engine may go back on its way to one match.
const STEPS: usize = 1_000_000;
/// Memory of one automaton that the engine builds, in bytes.
const AUTOMATON: usize = 10 << 20;
/// From the first token of a text to its last match.
const TIME: Duration = Duration::from_secs(10);

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression. As in the engine of Hugging Face `^` and `$` match at every line.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it is too long or does not compile.
    pub fn new(pattern: &str) -> Result<Pattern> {
        if pattern.len() > LONGEST {
            return Err(bad(pattern, format!("at most {LONGEST} bytes"), pattern.len()));
        }
        RegexBuilder::new(pattern)
            .multi_line(true)
            .backtrack_limit(STEPS)
            .delegate_size_limit(AUTOMATON)
            .delegate_dfa_size_limit(AUTOMATON)
            .build()
            .map(Pattern)
            .map_err(|error| bad(pattern, "a regular expression", quoted(error.to_string().as_bytes())))
    }

    /// Calls `found` with where each match that is not empty begins and ends; the whole text was begun at `start`.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the expression takes too long; those of `found`.
    pub fn each(&self, text: &str, start: Instant, mut found: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        for matched in self.0.find_iter(text) {
            let slow = |what: String| bad(self.0.as_str(), "an expression that comes to an end", what);
            let matched = matched.map_err(|error| slow(quoted(error.to_string().as_bytes())))?;
            if start.elapsed() > TIME {
                return Err(slow(format!("one that takes more than {} s", TIME.as_secs())));
            }
            if matched.end() > matched.start() {
                found(matched.start(), matched.end())?;
            }
        }
        Ok(())
    }
}

fn bad(pattern: &str, expected: impl ToString, found: impl ToString) -> Error {
    Error::bad_file(format!("tokenizer.json: pre_tokenizer: {}", quoted(pattern.as_bytes())), expected, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> Result<Vec<(usize, usize)>> {
        let mut all = Vec::new();
        Pattern::new(pattern)?.each(text, Instant::now(), |start, end| {
            all.push((start, end));
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn matches_are_found_and_empty_ones_skipped() {
        assert_eq!(matches(r"(?=(\d{3})+(?!\d))|b", "1234567b").unwrap(), [(7, 8)]);
        assert_eq!(matches(r"\s+(?!\S)|\s+", "a   b ").unwrap(), [(1, 3), (3, 4), (5, 6)]);
        assert_eq!(matches(r"x+$", "xx\nx").unwrap(), [(0, 2), (3, 4)]);
    }

    #[test]
    fn expressions_that_never_end_are_refused() {
        let error = matches(r"(?:(a|aa)+)(?=b)\1", &"a".repeat(5000)).unwrap_err().to_string();
        assert!(error.contains("pre_tokenizer") && error.contains("comes to an end"), "{error}");
        for wrong in ["(", "a{1000000}{1000000}", &"(".repeat(60_000), &"a".repeat(70_000)] {
            let error = Pattern::new(wrong).unwrap_err().to_string();
            assert!(error.contains("pre_tokenizer"), "{error}");
        }
    }
}
