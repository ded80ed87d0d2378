//! What a test says to the fake driver while it runs under it.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::ffi::{CString, c_char, c_int, c_long};
use std::time::Duration;

use libloading::Library;

/// The fake driver of this process.
pub struct Driver(Library);

impl Driver {
    pub fn get() -> Driver {
        // SAFETY: it only reads variables of the environment when it is loaded.
        Driver(unsafe { Library::new("libcuda.so.1") }.unwrap())
    }

    fn symbol<T: Copy>(&self, name: &str) -> T {
        // SAFETY: who asks for a function knows its type in fake_cuda.c.
        *unsafe { self.0.get::<T>(name.as_bytes()) }.unwrap()
    }

    /// Call `at` from now on returns `code`; with `function`, of those of this function. None does if `at` is 0.
    pub fn fail(&self, function: Option<&str>, at: i64, code: i32) {
        let function = function.map(|name| CString::new(name).unwrap());
        let name = function.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        let fail: unsafe extern "C" fn(*const c_char, c_long, c_int) = self.symbol("fake_cuda_fail");
        // SAFETY: the name is NULL or ends with a NUL.
        unsafe { fail(name, at, code) };
    }

    /// Whether the call that [`Self::fail`] named was made; from now on none fails.
    pub fn failed(&self, at: i64) -> bool {
        let made = self.count("counted") >= at;
        self.fail(None, 0, 0);
        made
    }

    /// Kernel `at` from now on ends in `code`.
    pub fn trap(&self, at: i64, code: i32) {
        let trap: unsafe extern "C" fn(c_long, c_int) = self.symbol("fake_cuda_trap");
        // SAFETY: it takes numbers.
        unsafe { trap(at, code) };
    }

    /// Kernels keep all streams busy for so long each.
    pub fn slow(&self, time: Duration) {
        let slow: unsafe extern "C" fn(c_long) = self.symbol("fake_cuda_slow");
        // SAFETY: it takes a number.
        unsafe { slow(time.as_nanos() as c_long) };
    }

    /// The first device has this much memory left.
    pub fn leave(&self, bytes: usize) {
        let leave: unsafe extern "C" fn(usize) = self.symbol("fake_cuda_leave");
        // SAFETY: it takes a number.
        unsafe { leave(bytes) };
    }

    /// A number of the driver's report, as it is now.
    pub fn count(&self, name: &str) -> i64 {
        let c_name = CString::new(name).unwrap();
        let count: unsafe extern "C" fn(*const c_char) -> c_long = self.symbol("fake_cuda_count");
        // SAFETY: the name ends with a NUL.
        let value = unsafe { count(c_name.as_ptr()) };
        assert!(value >= 0, "{name}");
        value
    }

    /// Asserts that nothing is left of what the driver handed out, and that it was used as it must be.
    pub fn assert_clean(&self, about: &str) {
        for name in super::LEFT {
            assert_eq!(self.count(name), 0, "{about}: {name}");
        }
    }
}
