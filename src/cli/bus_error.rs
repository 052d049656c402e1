//! The last words when a page of the data file cannot be read: LMDB maps the file, and where the disk
//! fails, or the file ends too early, the kernel has nothing to say but SIGBUS.
#![allow(unsafe_code)]

const WORDS: &str = "rheostr: a page of the data file cannot be read (SIGBUS): the file was cut short, or the \
                     disk fails; the kernel's log says which. `rheostr check --repair` makes the store anew \
                     from its events; where these cannot be read, `rheostr restore` a backup.\n";

extern "C" fn say(_: libc::c_int) {
    // SAFETY: write and signal are async-signal-safe, and the words are static. That nobody reads them is no
    // reason to do anything else: the instruction that failed runs again, and ends the process. The default
    // comes back after the words only: another thread may be at the same page, and would end the process
    // before they are said.
    unsafe {
        let _ = libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len());
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

/// Has them said. The process ends by the signal all the same.
pub fn explain() {
    // SAFETY: zeroes are a valid `sigaction`. What it names is a function with the signature of a handler
    // that calls nothing but those two, on the thread's signal stack where it has one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = say as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        // It fails only for signals that are none.
        let _ = libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}
