//! Any bytes as a request head: decided the same way however they arrive, and behind a proxy the client is
//! the first hop from the right that is not trusted. The first two bytes cut.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use rheostr::relay::Proxies;
use rheostr::relay::client::FORWARDED_FOR;
use rheostr::wire::http::{fields, read_request};

fuzz_target!(|bytes: &[u8]| {
    let [first, second, head @ ..] = bytes else { return };
    let whole = read_request(head, "/");
    if let Ok(Some((_, used))) = &whole {
        assert!(*used <= head.len());
        find_client(&fields(&head[..*used], FORWARDED_FOR));
    }
    let cuts = [usize::from(*first), usize::from(*second) * 16];
    for cut in cuts.into_iter().filter(|cut| *cut < head.len()) {
        match read_request(&head[..cut], "/") {
            Ok(None) => {}
            decided => assert_eq!(decided, whole),
        }
    }
});

fn find_client(values: &[&[u8]]) {
    let proxies = Proxies::parse(["10.0.0.0/8", "::1"]).expect("networks");
    let proxy = IpAddr::from([10, 0, 0, 1]);
    let client = proxies.client(proxy, values);
    // As one list it means the same.
    assert_eq!(proxies.client(proxy, &[&values.join(&b',')]), client);
    // A proxy that calls itself adds nothing to the way.
    let added = [values, &[b"10.0.0.1"]].concat();
    assert_eq!(proxies.client(proxy, &added), client);
    let stranger = IpAddr::from([192, 0, 2, 1]);
    assert_eq!(proxies.client(stranger, values), Ok(stranger));
}
