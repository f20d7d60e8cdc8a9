//! Work that lets everything else go first.

use std::io;
use std::thread::{Builder, JoinHandle};

/// How nice a thread in the background is: it gets about a tenth of a core that others want as well, and all of one that
/// they do not.
const NICENESS: i32 = 10;

/// Runs something long on a thread of its own that lets others go first: whoever shares the machine's cores with it, a
/// leader that answers clients for example, is not to feel it.
///
/// # Errors
/// When the system gives no further thread.
pub fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        let_others_first();
        work()
    })
}

/// The same for something that the caller waits for and that borrows from it.
///
/// # Errors
/// When the system gives no further thread.
pub fn in_background_and_wait<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, move || {
            let_others_first();
            work()
        })?;
        thread.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn let_others_first() {
    // Without it the work is as correct, and in others' way. On Linux `None` is the calling thread, not its process.
    let _ = rustix::process::setpriority_process(None, NICENESS);
}
