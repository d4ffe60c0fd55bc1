//! Which known word was meant.

/// Nobody misspells a word into one as long as this.
const MAX_WORD: usize = 64;

/// The known word that lies next to this one, if any is near enough to be meant.
///
/// Near is a third of its letters, three at most; case and hyphens count for nothing.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(MAX_WORD + 1).map(plain).collect();
    if word.len() > MAX_WORD {
        return None;
    }
    let far = |known: &str| distance(&word, &known.chars().map(plain).collect::<Vec<_>>());
    let near = known.iter().map(|known| (far(known), *known)).filter(|(far, known)| *far <= (known.len() / 3).min(3));
    near.min_by_key(|(far, _)| *far).map(|(_, known)| known)
}

fn plain(letter: char) -> char {
    if letter == '-' { '_' } else { letter.to_ascii_lowercase() }
}

/// How many letters are to be put in, taken out, changed, or swapped with their neighbour (Damerau, 1964; no part is
/// edited twice).
fn distance(one: &[char], other: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, with) in other.iter().enumerate() {
            let mut least = (above[j] + usize::from(letter != with)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && letter == &other[j - 1] && &one[i - 1] == with {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[other.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 5] = ["attempts", "pause", "longest_pause", "body_cap", "hedge"];

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        for (slip, meant) in [
            ("atempts", "attempts"),
            ("attempst", "attempts"),
            ("Attempts", "attempts"),
            ("body-cap", "body_cap"),
            ("bodycap", "body_cap"),
            ("longest_pauze", "longest_pause"),
            ("hegde", "hedge"),
        ] {
            assert_eq!(nearest(slip, &KNOWN), Some(meant));
        }
        for other in ["", "x", "total", "cap", "breaker"] {
            assert_eq!(nearest(other, &KNOWN), None, "{other}");
        }
    }

    #[test]
    fn letters_are_put_in_taken_out_changed_and_swapped() {
        let far =
            |one: &str, other: &str| distance(&one.chars().collect::<Vec<_>>(), &other.chars().collect::<Vec<_>>());
        assert_eq!([far("", ""), far("", "abc"), far("abc", ""), far("abc", "abc")], [0, 3, 3, 0]);
        assert_eq!(
            [far("abcd", "acbd"), far("abc", "abxc"), far("abc", "axc"), far("kitten", "sitting")],
            [1, 1, 1, 3]
        );
    }

    proptest! {
        #[test]
        fn any_word_has_an_answer_and_a_known_one_is_itself(word in any::<String>(), at in 0..KNOWN.len()) {
            let _ = nearest(&word, &KNOWN);
            let _ = nearest(&word.repeat(1000), &KNOWN);
            prop_assert_eq!(nearest(KNOWN[at], &KNOWN), Some(KNOWN[at]));
        }
    }
}
