//! A unified diff of two texts, with one line of context.

/// The diff, at most `limit` lines; empty for equal texts.
#[must_use]
pub fn unified(expected: &str, actual: &str, limit: usize) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let edits = edits(&a, &b);
    let near = |i: usize| edits[i.saturating_sub(1)..edits.len().min(i + 2)].iter().any(|(mark, _)| *mark != ' ');
    let mut out = Vec::new();
    let mut gap = false;
    for (i, (mark, line)) in edits.iter().enumerate() {
        if near(i) {
            if gap {
                out.push("@@".to_owned());
            }
            out.push(format!("{mark}{line}"));
        }
        gap = !near(i);
    }
    let left = out.len().saturating_sub(limit);
    out.truncate(limit);
    if left > 0 {
        out.push(format!("… {left} more lines"));
    }
    out.join("\n")
}

/// Each line with ' ' (both), '-' (expected only) or '+' (actual only), by longest common subsequence.
fn edits<'t>(a: &[&'t str], b: &[&'t str]) -> Vec<(char, &'t str)> {
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(x, y)| x == y).count();
    let mut out: Vec<_> = a[..head].iter().map(|l| (' ', *l)).collect();
    out.extend(middle(&a[head..a.len() - tail], &b[head..b.len() - tail]));
    out.extend(a[a.len() - tail..].iter().map(|l| (' ', *l)));
    out
}

fn middle<'t>(a: &[&'t str], b: &[&'t str]) -> Vec<(char, &'t str)> {
    const MOST: usize = 16_000_000; // cells of the table below: beyond it, show the two texts one after the other
    if a.len().saturating_mul(b.len()) > MOST {
        return a.iter().map(|l| ('-', *l)).chain(b.iter().map(|l| ('+', *l))).collect();
    }
    let width = b.len() + 1;
    let mut common = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i * width + j] = if a[i] == b[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            out.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            out.push(('-', a[i]));
            i += 1;
        } else {
            out.push(('+', b[j]));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_no_difference() {
        assert_eq!(unified("a\nb\n", "a\nb\n", 10), "");
    }

    #[test]
    fn shows_changes_with_their_neighbours() {
        assert_eq!(unified("a\nb\nc\nd\ne\nf\ng\n", "a\nB\nc\nd\ne\ng\n", 20), " a\n-b\n+B\n c\n@@\n e\n-f\n g");
    }

    #[test]
    fn is_cut_at_the_limit() {
        assert_eq!(unified("a\nb\nc\n", "", 2), "-a\n-b\n… 1 more lines");
    }
}
