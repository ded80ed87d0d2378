//! Texts for people, as one line that steers no terminal. A leaf.

/// Most bytes of a line, without a NUL.
pub const MAX_LINE: usize = 511;

/// `text` with everything escaped that could break a line or steer a terminal, cut at [`MAX_LINE`] bytes.
pub fn one_line(text: &str) -> String {
    const CUT: &str = "...";
    let mut line = String::new();
    let mut cut = 0;
    for char in text.chars() {
        if steers(char) {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
        if line.len() > MAX_LINE {
            line.truncate(cut);
            line.push_str(CUT);
            break;
        }
        if line.len() + CUT.len() <= MAX_LINE {
            cut = line.len();
        }
    }
    line
}

/// Controls, line separators, and the marks that reorder or hide text.
fn steers(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}')
        || matches!(char, '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c17_messages_are_one_bounded_printable_line() {
        assert_eq!(one_line("a\x1b[31m%n\nb\0\u{202E}c"), "a\\u{1b}[31m%n\\nb\\u{0}\\u{202e}c");
        assert_eq!(one_line("Frühling 🌸"), "Frühling 🌸");
        assert_eq!(one_line(&"x".repeat(511)), "x".repeat(511));
        assert_eq!(one_line(&"x".repeat(512)), format!("{}...", "x".repeat(508)));
        for pad in 0..5 {
            let cut = one_line(&format!("{}{}", "x".repeat(pad), "🌸".repeat(5000)));
            assert!(cut.len() <= MAX_LINE && cut.len() > MAX_LINE - 8 && cut.ends_with("🌸..."));
            let cut = one_line(&format!("{}{}", "x".repeat(pad), "\n".repeat(5000)));
            assert!(cut.len() <= MAX_LINE && cut.ends_with("n..."));
        }
    }
}
