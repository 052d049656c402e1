//! Any bytes as a request head: decided the same way however they arrive. The first two bytes cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rheostr::wire::http::read_request;

fuzz_target!(|bytes: &[u8]| {
    let [first, second, head @ ..] = bytes else { return };
    let whole = read_request(head, "/");
    if let Ok(Some((_, used))) = &whole {
        assert!(*used <= head.len());
    }
    let cuts = [usize::from(*first), usize::from(*second) * 16];
    for cut in cuts.into_iter().filter(|cut| *cut < head.len()) {
        match read_request(&head[..cut], "/") {
            Ok(None) => {}
            decided => assert_eq!(decided, whole),
        }
    }
});
