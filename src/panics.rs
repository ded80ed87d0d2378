//! Panics that happen inside kigo stay silent and keep their text; all others go where they went before.
//!
//! A leaf: `c_api` and `engine` catch with [`caught`], threads that belong to kigo declare themselves with
//! [`own_thread`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Declares the current thread to be kigo's own: its panics are reported by whoever joins it, never printed.
pub fn own_thread() {
    install_hook();
    INSIDE.set(true);
}

/// Runs `body`; a panic becomes `Err` with its text and, where known, its place in the source.
///
/// The caller must not use what `body` has touched after a panic, unless it tolerates a state that is half changed.
pub fn caught<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    let outer = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(outer);
    result.map_err(|payload| {
        let text = payload_text(&*payload).to_owned();
        discard(payload);
        match PLACE.take() {
            Some(place) => format!("{text} ({place})"),
            None => text,
        }
    })
}

/// Runs code of the host, whose panics are its own, inside a body of [`caught`].
pub fn outside<T>(body: impl FnOnce() -> T) -> T {
    let inside = INSIDE.replace(false);
    let result = body();
    INSIDE.set(inside);
    result
}

fn install_hook() {
    // Hooks cannot be changed while this thread unwinds; the next call will do it.
    if std::thread::panicking() {
        return;
    }
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !keep_quiet(info) {
                previous(info);
            }
        }));
    });
}

/// Notes where the panic is if the thread is inside kigo; false if it is not.
fn keep_quiet(info: &PanicHookInfo) -> bool {
    let inside = INSIDE.try_with(Cell::get).unwrap_or(false);
    if inside {
        let place = info.location().map(|location| format!("{}:{}", location.file(), location.line()));
        // Fails only while the thread's locals are torn down, when nobody will ask.
        let _ = PLACE.try_with(|cell| cell.replace(place));
    }
    inside
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "panic without a text"
    }
}

/// Drops a payload, whose destructor might itself panic.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_place_of_a_panic_are_kept() {
        let error = caught(|| panic!("lost {}", 7)).unwrap_err();
        assert!(error.starts_with("lost 7 (src/panics.rs:"), "{error}");
        assert_eq!(caught(|| 5), Ok(5));
    }

    #[test]
    fn odd_payloads_are_survived() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("payload");
            }
        }
        let error = caught(|| std::panic::panic_any(Bomb)).unwrap_err();
        assert!(error.starts_with("panic without a text"), "{error}");
    }

    #[test]
    fn a_panic_in_an_own_thread_is_taken_over() {
        let payload = std::thread::spawn(|| {
            own_thread();
            panic!("worker");
        })
        .join()
        .unwrap_err();
        let error = caught(|| -> () { std::panic::resume_unwind(payload) }).unwrap_err();
        assert_eq!(error, "worker");
    }

    #[test]
    fn the_flag_is_restored_after_nesting() {
        let _ = caught(|| {
            let _ = caught(|| panic!("inner"));
            assert!(INSIDE.get());
            outside(|| assert!(!INSIDE.get()));
            assert!(INSIDE.get());
        });
        assert!(!INSIDE.get());
    }
}
