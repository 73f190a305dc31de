//! What is wrong with a topology file, all of it at once.
//!
//! Knows nothing of YAML or of topologies: a mistake is a line, what is wrong
//! there, and what to write instead.

use std::error::Error;
use std::fmt;

/// Everything that is wrong with a topology file, in the order of its lines.
///
/// Its display is one line for each mistake: `file:line: what is wrong; the remedy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    file: String,
    mistakes: Vec<Mistake>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1; 0 where it is no line of this file but the file itself
    /// or a default.
    pub line: usize,
    /// What is wrong. It never holds a secret's value.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Mistakes {
    /// None yet.
    pub(super) fn of(file: &str) -> Mistakes {
        Mistakes { file: file.to_owned(), mistakes: Vec::new() }
    }

    /// Notes one more.
    pub(super) fn note(&mut self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.mistakes.push(Mistake { line, what: what.into(), remedy: remedy.into() });
    }

    /// How many have been noted.
    pub(super) fn len(&self) -> usize {
        self.mistakes.len()
    }

    /// The same, in the order of lines.
    pub(super) fn sorted(mut self) -> Mistakes {
        self.mistakes.sort_by_key(|mistake| mistake.line);
        self
    }

    /// The mistakes, in the order of lines.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Mistake> {
        self.mistakes.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { line, what, remedy }) in self.mistakes.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            match line {
                0 => write!(formatter, "{}: {what}; {remedy}", self.file)?,
                _ => write!(formatter, "{}:{line}: {what}; {remedy}", self.file)?,
            }
        }
        Ok(())
    }
}

impl Error for Mistakes {}

/// The candidate that was most likely meant, as a remedy's beginning: `did you
/// mean "x"? ` or nothing.
pub(super) fn did_you_mean<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    // A third of the letters wrong is a slip of the finger; more is another word.
    let distance_max = (written.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(written, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| format!("did you mean \"{candidate}\"? "))
        .unwrap_or_default()
}

/// A value as a message shows it: on one line, and not endlessly.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 60;
    if text.chars().count() <= SHOWN_CHARACTERS_MAX {
        return format!("{text:?}");
    }
    let beginning: String = text.chars().take(SHOWN_CHARACTERS_MAX).collect();
    format!("{:?}", beginning + "…")
}
