//! Fills `${NAME:-default}` in from the environment, as docker compose does, and
//! `${file:PATH}` from a file, as which secrets come.
//!
//! Knows nothing of YAML: it is given the text of one value and gives back
//! another, so a variable can never change a file's structure. Its complaints
//! never repeat the text, which may be a secret.

use std::io::Read as _;

/// A text with its variables filled in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    /// The text.
    pub(super) text: String,
    /// There was a variable in it.
    pub(super) substituted: bool,
    /// The variables that were not set and had no default: they became empty.
    pub(super) unset: Vec<String>,
}

/// What is wrong, and the remedy.
pub(super) type Complaint = (String, String);

/// A secret is a line or a few certificates; what is larger is another file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A default may hold a variable, whose default may hold one, so many deep.
const NESTING_MAX: usize = 8;

/// Fills in `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`,
/// `${NAME:?message}`, `${NAME?message}`, `${NAME:+other}`, `${NAME+other}`, and
/// `${file:path}`, a file's text without the line's end that it ends with; `$$` is
/// a dollar sign.
pub(super) fn fill(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Filled, Complaint> {
    let mut filled = Filled::default();
    fill_into(&mut filled, text, environment, NESTING_MAX)?;
    Ok(filled)
}

fn fill_into(
    filled: &mut Filled,
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    nesting: usize,
) -> Result<(), Complaint> {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.text.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            filled.text.push('$');
            rest = after;
            continue;
        }
        filled.substituted = true;
        if let Some(after) = after.strip_prefix('{') {
            let Some((inside, behind)) = split_at_closing(after) else {
                return Err(complaint(
                    "a \"${\" is not closed",
                    "close it with }, or write $$ for a dollar sign",
                ));
            };
            let Some(nesting) = nesting.checked_sub(1) else {
                return Err(complaint("defaults within defaults go too deep", "name the variable directly"));
            };
            fill_expression(filled, inside, environment, nesting)?;
            rest = behind;
        } else {
            let (name, behind) = split_name(after);
            if name.is_empty() {
                return Err(complaint(
                    "a \"$\" stands before no variable's name",
                    "write ${NAME:-default} for a variable, $$ for a dollar sign",
                ));
            }
            put(filled, name, environment(name));
            rest = behind;
        }
    }
    filled.text.push_str(rest);
    Ok(())
}

/// What stands between the braces.
fn fill_expression(
    filled: &mut Filled,
    inside: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    nesting: usize,
) -> Result<(), Complaint> {
    // No path begins with what may follow a variable's name.
    if let Some(path) = inside.strip_prefix("file:").filter(|path| !path.starts_with(['-', '?', '+'])) {
        let mut filled_path = Filled::default();
        fill_into(&mut filled_path, path, environment, nesting)?;
        filled.unset.append(&mut filled_path.unset);
        filled.text.push_str(&read_file(&filled_path.text)?);
        return Ok(());
    }
    let (name, operation) = split_name(inside);
    if name.is_empty() {
        return Err(complaint(
            "a \"${\" stands before no variable's name",
            "write a name of letters, digits and underscores, or $$ for a dollar sign",
        ));
    }
    // With a colon, an empty variable counts as one that is not set.
    let (empty_counts, operation) = match operation.strip_prefix(':') {
        Some(operation) => (false, operation),
        None => (true, operation),
    };
    let value = environment(name).filter(|value| empty_counts || !value.is_empty());
    if let Some(default) = operation.strip_prefix('-') {
        match value {
            Some(value) => filled.text.push_str(&value),
            None => fill_into(filled, default, environment, nesting)?,
        }
    } else if let Some(message) = operation.strip_prefix('?') {
        let Some(value) = value else {
            let mut reason = Filled::default();
            fill_into(&mut reason, message, environment, nesting)?;
            let state = if empty_counts { "not set" } else { "not set, or empty" };
            let what = match reason.text.trim() {
                "" => format!("{name} is {state}"),
                reason => format!("{name} is {state}: {reason}"),
            };
            return Err((what, format!("set {name} in the environment")));
        };
        filled.text.push_str(&value);
    } else if let Some(other) = operation.strip_prefix('+') {
        if value.is_some() {
            fill_into(filled, other, environment, nesting)?;
        }
    } else if operation.is_empty() && empty_counts {
        put(filled, name, value);
    } else {
        return Err((
            format!("the variable {name} is followed by none of :- - :? ? :+ +"),
            format!("write ${{{name}}} or ${{{name}:-default}}"),
        ));
    }
    Ok(())
}

/// The text of a file.
fn read_file(path: &str) -> Result<String, Complaint> {
    let remedy = "write ${file:PATH} with the path of a text file that this user may read";
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| complaint(&format!("read the file {path:?}: {error}"), remedy))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(complaint(&format!("the file {path:?} is larger than 64 KiB"), remedy));
    }
    let mut text = String::from_utf8(bytes)
        .map_err(|_| complaint(&format!("the file {path:?} holds no UTF-8"), remedy))?;
    // Editors and `echo` end a file's last line; no secret ends so.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn put(filled: &mut Filled, name: &str, value: Option<String>) {
    match value {
        Some(value) => filled.text.push_str(&value),
        None => filled.unset.push(name.to_owned()),
    }
}

fn split_name(text: &str) -> (&str, &str) {
    let starts = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let end = text.find(|other: char| !(other.is_ascii_alphanumeric() || other == '_')).unwrap_or(text.len());
    text.split_at(if starts { end } else { 0 })
}

/// Splits at the brace that closes this expression: those of variables inside
/// its default are theirs.
fn split_at_closing(text: &str) -> Option<(&str, &str)> {
    let mut open = 0_usize;
    let mut dollar = false;
    for (index, character) in text.char_indices() {
        match character {
            '{' if dollar => open += 1,
            '}' if open == 0 => return Some((text.get(..index)?, text.get(index + 1..)?)),
            '}' => open -= 1,
            _ => {}
        }
        // The second of two dollars is a dollar sign, no variable's beginning.
        dollar = character == '$' && !dollar;
    }
    None
}

fn complaint(what: &str, remedy: &str) -> Complaint {
    (what.to_owned(), remedy.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("${SET}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_filled_in_as_compose_does() {
        for (text, expected) in [
            ("plain", "plain"),
            ("$SET and ${SET}", "value and value"),
            ("$$SET $${SET}", "$SET ${SET}"),
            ("${SET:-default}|${EMPTY:-default}|${UNSET:-default}", "value|default|default"),
            ("${SET-default}|${EMPTY-default}|${UNSET-default}", "value||default"),
            ("${UNSET:-localhost:9092}", "localhost:9092"),
            ("${UNSET:-}", ""),
            ("${UNSET}|$UNSET|${EMPTY}", "||"),
            ("${SET:?why}${EMPTY?why}", "value"),
            ("${SET:+other}|${EMPTY:+other}|${EMPTY+other}|${UNSET+other}", "other||other|"),
            ("${UNSET:-${ALSO_UNSET:-${SET}}}", "value"),
            ("${UNSET:-a $$ b}", "a $ b"),
            ("${UNSET:-$${}", "${"),
            // What comes from the environment is not looked at again.
            ("${DOLLAR}", "${SET}"),
        ] {
            assert_eq!(fill(text, &environment).map(|filled| filled.text), Ok(expected.to_owned()), "{text}");
        }
        assert_eq!(fill("${UNSET}$OTHER", &environment).unwrap().unset, ["UNSET", "OTHER"]);
    }

    #[test]
    fn a_file_is_filled_in_without_its_lines_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let filled = |text: &str| {
            let folder = folder.path().display().to_string();
            let named = |name: &str| if name == "DIR" { Some(folder.clone()) } else { environment(name) };
            fill(text, &named)
        };
        for (written, expected) in [
            ("hunter2", "hunter2"),
            ("hunter2\n", "hunter2"),
            ("hunter2\r\n", "hunter2"),
            ("two\nlines\n", "two\nlines"),
            // What comes from a file is not looked at again.
            ("${SET}$\n", "${SET}$"),
            ("", ""),
        ] {
            std::fs::write(path("secret"), written).unwrap();
            let text = filled("a ${file:${DIR}/secret} b").map(|filled| (filled.text, filled.substituted));
            assert_eq!(text, Ok((format!("a {expected} b"), true)), "{written:?}");
        }
        assert_eq!(filled("${UNSET:-${file:${DIR}/secret}}").unwrap().text, "");
        // A variable may have that name.
        assert_eq!(filled("${file:-default}${file:+other}").unwrap().text, "default");

        std::fs::write(path("latin"), b"hunter2\xff").unwrap();
        std::fs::write(path("large"), "hunter2".repeat(10_000)).unwrap();
        for (name, expected) in [
            ("none", "No such file"),
            ("latin", "holds no UTF-8"),
            ("large", "is larger than 64 KiB"),
            ("", "Is a directory"),
        ] {
            let (what, remedy) = filled(&format!("${{file:${{DIR}}/{name}}}")).unwrap_err();
            assert!(what.contains(&path(name)) && what.contains(expected), "{what}");
            assert!(!format!("{what}{remedy}").contains("hunter2"));
        }
    }

    #[test]
    fn bad_substitutions_are_complained_of_without_the_text() {
        for (text, expected) in [
            ("secret$", "a \"$\" stands before no variable's name"),
            ("secret$1", "a \"$\" stands before no variable's name"),
            ("secret${", "a \"${\" is not closed"),
            ("${UNSET:-${SET}", "a \"${\" is not closed"),
            ("${}", "a \"${\" stands before no variable's name"),
            ("${SET:}", "the variable SET is followed by none of :- - :? ? :+ +"),
            ("${SET!secret}", "the variable SET is followed by none of :- - :? ? :+ +"),
            ("${UNSET:?say who you are}", "UNSET is not set, or empty: say who you are"),
            ("${UNSET?}", "UNSET is not set"),
        ] {
            let (what, remedy) = fill(text, &environment).unwrap_err();
            assert_eq!(what, expected, "{text}");
            assert!(!remedy.contains("secret"));
        }
        let deep = "${U:-".repeat(100) + &"}".repeat(100);
        assert!(fill(&deep, &environment).is_err());
    }
}
