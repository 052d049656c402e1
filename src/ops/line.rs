//! One line of bounded length.

use std::io::{self, BufRead};

/// Reads one line into `text`, its end left out, and returns how many bytes it took: 0 at the end of
/// the input. Of a line longer than `bytes_max`, one byte more than that is kept, which tells it.
///
/// # Errors
/// When the input cannot be read.
pub fn read_line(
    input: &mut impl BufRead,
    bytes_max: usize,
    text: &mut Vec<u8>,
) -> io::Result<u64> {
    text.clear();
    let mut taken = 0;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|b| *b == b'\n');
        let line = end.unwrap_or(available.len());
        let room = (bytes_max + 1).saturating_sub(text.len());
        text.extend_from_slice(&available[..line.min(room)]);
        let (used, done) = (line + usize::from(end.is_some()), end.is_some() || line == 0);
        input.consume(used);
        taken += used as u64;
        if done {
            return Ok(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    #[test]
    fn lines_end_where_they_end() {
        let mut input = BufReader::with_capacity(3, &b"first\n\nlonger than five\nlast"[..]);
        let mut text = Vec::new();
        let mut found = Vec::new();
        loop {
            let taken = read_line(&mut input, 5, &mut text).unwrap();
            if taken == 0 {
                break;
            }
            found.push((taken, String::from_utf8(text.clone()).unwrap()));
        }
        let found: Vec<(u64, &str)> = found.iter().map(|(n, text)| (*n, text.as_str())).collect();
        assert_eq!(found, [(6, "first"), (1, ""), (17, "longer"), (4, "last")]);
    }

    #[test]
    fn a_long_line_costs_its_bound_and_no_more() {
        let mut reader = BufReader::new(io::repeat(b'x').take(1 << 20));
        let mut text = Vec::new();
        assert_eq!(read_line(&mut reader, 1_000, &mut text).unwrap(), 1 << 20);
        assert_eq!(text.len(), 1_001);
    }
}
