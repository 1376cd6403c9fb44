//! Strings that end a text.

/// Passes a text on as it comes until one of some strings is complete in it. Neither that string
/// nor any part of it is passed on, however the text is cut into pieces.
///
/// The string that is complete first ends the text; of those that are complete at the same
/// character, the longest.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, which may be the beginning of a stop string.
    held: String,
}

impl StopStrings {
    /// Ends at `stops`; empty ones are never complete.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// The next piece of the text: appends to `passed` what is certain to come before any stop
    /// string, and returns whether one is complete. Nothing may be pushed after that.
    pub fn push(&mut self, piece: &str, passed: &mut String) -> bool {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start))
        });
        let found = found.min();
        let certain = match found {
            Some((_, start)) => start,
            None => self.held.len() - self.longest_beginning(),
        };
        passed.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        found.is_some()
    }

    /// Ends the text where no stop string did: appends what was held back.
    pub fn finish(&mut self, passed: &mut String) {
        passed.push_str(&std::mem::take(&mut self.held));
    }

    /// Bytes at the end of what is held that begin a stop string.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let starts = self.held.char_indices().map(|(start, _)| start);
        let ends = starts.map(|start| &self.held[start..]);
        let mut ends = ends.skip_while(|end| end.len() >= longest);
        ends.find(|end| self.stops.iter().any(|stop| stop.starts_with(end)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What is passed on of a text in pieces, and whether it was stopped.
    fn passed(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut text = String::new();
        for piece in pieces {
            if stop.push(piece, &mut text) {
                return (text, true);
            }
        }
        stop.finish(&mut text);
        (text, false)
    }

    #[test]
    fn a_stop_string_may_come_in_pieces() {
        let pieces = ["one ", "<", "st", "op> two"];
        assert_eq!(passed(&["<stop>"], &pieces), ("one ".into(), true));
        assert_eq!(passed(&["<stoq>"], &pieces), (pieces.concat(), false));
        assert_eq!(
            passed(&["停止"], &["等等停", "止吧"]),
            ("等等".into(), true)
        );
        assert_eq!(passed(&["aab"], &["aa", "aab"]), ("aa".into(), true));
        assert_eq!(passed(&[""], &["a"]), ("a".into(), false));
    }

    #[test]
    fn what_may_be_a_beginning_waits() {
        let mut stop = StopStrings::new(["###".to_owned()]);
        let mut text = String::new();
        for (piece, so_far) in [("a#", "a"), ("#", "a"), ("b", "a##b"), ("##", "a##b")] {
            assert!(!stop.push(piece, &mut text));
            assert_eq!(text, so_far, "after {piece}");
        }
        stop.finish(&mut text);
        assert_eq!(text, "a##b##");
    }

    #[test]
    fn the_first_to_be_complete_ends_the_text() {
        for pieces in [&["abcd"][..], &["ab", "cd"], &["a", "b", "c", "d"]] {
            assert_eq!(passed(&["abcd", "bc"], pieces), ("a".into(), true));
            assert_eq!(passed(&["bc", "abc"], pieces), (String::new(), true));
        }
    }

    proptest! {
        /// However a text is cut, the same of it is passed on: all before the stop string.
        #[test]
        fn cuts_change_nothing(
            text in "[ab€]{0,24}",
            stops in vec("[ab€]{1,4}", 0..4),
            cuts in vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let mut at: Vec<usize> = match boundaries.len() {
                0 => vec![],
                _ => cuts.iter().map(|cut| *cut.get(&boundaries)).collect(),
            };
            at.sort_unstable();
            at.push(text.len());
            let pieces: Vec<&str> = at
                .iter()
                .scan(0, |from, &to| Some(&text[std::mem::replace(from, to)..to]))
                .collect();
            let (got, stopped) = passed(&stops, &pieces);
            prop_assert_eq!(&(got.clone(), stopped), &passed(&stops, &[&text]));
            prop_assert!(text.starts_with(&got));
            prop_assert_eq!(stopped, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(!stops.iter().any(|stop| got.contains(stop)));
            if stopped {
                prop_assert!(stops.iter().any(|stop| text[got.len()..].starts_with(stop)));
            } else {
                prop_assert_eq!(got, text);
            }
        }
    }
}
