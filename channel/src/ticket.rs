//! One result on its way up: a std `Future` that can also be waited on by a thread.
//!
//! Promises that a ticket resolves exactly once, even when the side that owes the result goes away, and that
//! dropping a ticket cancels nothing. It leaves runtimes to others: there is no waker but the caller's own.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

enum State<T> {
    Waiting(Option<Waker>),
    /// A thread sleeps until it is ready; only then is the kernel asked to wake one.
    Slept,
    Ready(T),
    Taken,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The lock covers pointer moves only, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving half: await it, or [`wait`](Ticket::wait) for it.
#[must_use = "a ticket carries the outcome; nobody else will report it"]
pub struct Ticket<T> {
    shared: Arc<Shared<T>>,
}

/// The owing half. Dropping it unresolved answers the ticket with `T`'s abandonment value.
pub struct TicketSender<T: Abandoned> {
    shared: Option<Arc<Shared<T>>>,
}

/// What a ticket says when the side that owed its result is gone.
pub trait Abandoned {
    fn abandoned() -> Self;
}

impl<T: Abandoned> TicketSender<T> {
    pub fn resolve(mut self, value: T) {
        self.fulfil(value);
    }

    fn fulfil(&mut self, value: T) {
        let Some(shared) = self.shared.take() else { return };
        let before = std::mem::replace(&mut *shared.lock(), State::Ready(value));
        match before {
            State::Slept => shared.ready.notify_all(),
            State::Waiting(Some(waker)) => waker.wake(),
            State::Waiting(None) | State::Ready(_) | State::Taken => {}
        }
    }
}

impl<T: Abandoned> Drop for TicketSender<T> {
    fn drop(&mut self) {
        if self.shared.is_some() {
            self.fulfil(T::abandoned());
        }
    }
}

impl<T> Ticket<T> {
    /// A ticket and the sender that owes its result.
    pub fn pair() -> (TicketSender<T>, Ticket<T>)
    where
        T: Abandoned,
    {
        let shared = Arc::new(Shared { state: Mutex::new(State::Waiting(None)), ready: Condvar::new() });
        (TicketSender { shared: Some(Arc::clone(&shared)) }, Ticket { shared })
    }

    /// A ticket whose result is known already.
    pub fn resolved(value: T) -> Ticket<T> {
        Ticket { shared: Arc::new(Shared { state: Mutex::new(State::Ready(value)), ready: Condvar::new() }) }
    }

    /// Blocks the calling thread until the result is there. Not for an async worker: await the ticket instead.
    pub fn wait(self) -> T {
        let mut state = self.shared.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Ready(value) => return value,
                _ => *state = State::Slept,
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`wait`](Ticket::wait), but gives the ticket back when `limit` has passed.
    pub fn wait_for(self, limit: Duration) -> Result<T, Ticket<T>> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Ready(value) => return Ok(value),
                _ => *state = State::Slept,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return Err(self);
            }
            state = self.shared.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The result if it is there, without waiting.
    pub fn try_take(self) -> Result<T, Ticket<T>> {
        let mut state = self.shared.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ready(value) => Ok(value),
            other => {
                *state = other;
                drop(state);
                Err(self)
            }
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.shared.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ready(value) => Poll::Ready(value),
            State::Waiting(_) | State::Slept => {
                *state = State::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            // Polling a finished future again is the caller's mistake; it must not look like a result.
            State::Taken => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Answer {
        Yes(u32),
        Gone,
    }
    impl Abandoned for Answer {
        fn abandoned() -> Answer {
            Answer::Gone
        }
    }

    #[test]
    fn a_waiting_thread_gets_the_result() {
        let (sender, ticket) = Ticket::pair();
        let waiter = std::thread::spawn(move || ticket.wait());
        sender.resolve(Answer::Yes(7));
        assert_eq!(waiter.join().unwrap(), Answer::Yes(7));
    }

    #[test]
    fn a_dropped_sender_answers_instead_of_leaving_the_caller_waiting() {
        let (sender, ticket) = Ticket::<Answer>::pair();
        drop(sender);
        assert_eq!(ticket.wait(), Answer::Gone);
    }

    #[test]
    fn a_future_is_woken_once_the_result_is_there() {
        use std::sync::atomic::{AtomicU32, Ordering};
        struct Count(AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let (sender, mut ticket) = Ticket::pair();
        assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
        sender.resolve(Answer::Yes(1));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(Pin::new(&mut ticket).poll(&mut context), Poll::Ready(Answer::Yes(1)));
    }

    #[test]
    fn waiting_has_an_end_and_the_ticket_survives_it() {
        let (sender, ticket) = Ticket::pair();
        let ticket = ticket.try_take().unwrap_err();
        sender.resolve(Answer::Yes(3));
        assert_eq!(ticket.try_take().ok(), Some(Answer::Yes(3)));
    }
}
