//! Handshakes that are under way on one thread, and a bound on them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use tokio::sync::oneshot;

/// Unfinished handshakes of one thread. Beyond a bound, each new one ends the oldest: an honest client is done within
/// milliseconds, so that one is most likely of somebody who connects and stays silent. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Pending {
    most: usize,
    next: Rc<Cell<u64>>,
    places: Rc<RefCell<BTreeMap<u64, oneshot::Sender<()>>>>,
}

/// Frees a place when dropped.
struct Place<'a>(&'a Pending, u64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.places.borrow_mut().remove(&self.1);
    }
}

impl Pending {
    /// With room for so many.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), next: Rc::default(), places: Rc::default() }
    }

    /// Runs a handshake; none if it was ended because there were too many newer ones.
    pub async fn run<T>(&self, handshake: impl Future<Output = T>) -> Option<T> {
        let number = self.next.replace(self.next.get() + 1);
        let (sender, ended) = oneshot::channel();
        {
            let mut places = self.places.borrow_mut();
            if places.len() >= self.most {
                // Dropping the sender tells the handshake.
                places.pop_first();
            }
            places.insert(number, sender);
        }
        let _place = Place(self, number);
        tokio::select! {
            biased;
            done = handshake => Some(done),
            _ = ended => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[tokio::test]
    async fn the_oldest_of_too_many_is_ended_and_the_newest_finishes() {
        let pending_handshakes = Pending::new(2);
        let hang = || pending_handshakes.run(pending::<()>());
        let (mut first, mut second) = (Box::pin(hang()), Box::pin(hang()));
        tokio::select! { biased; _ = &mut first => panic!("ended"), () = ready(()) => {} }
        tokio::select! { biased; _ = &mut second => panic!("ended"), () = ready(()) => {} }
        assert_eq!(pending_handshakes.run(ready(7)).await, Some(7), "the newest finds room");
        assert_eq!(first.await, None, "which was the oldest's");
        tokio::select! { biased; _ = &mut second => panic!("ended"), () = ready(()) => {} }
        drop(second);
        assert!(pending_handshakes.places.borrow().is_empty());
    }
}
