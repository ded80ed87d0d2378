//! Devices, and the context that all of kigo's work on one happens in: the primary one, which the host may use too.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint};
use std::marker::PhantomData;
use std::sync::Arc;

use super::driver::{Code, CuContext, Driver, Functions, Loss, code, no_device};
use super::memory::Ledger;
pub use crate::backend::DeviceInfo;
use crate::{Error, Result};

/// Attributes of a device, `CUdevice_attribute`.
const MULTIPROCESSOR_COUNT: c_uint = 16;
const MEMORY_CLOCK_RATE: c_uint = 36;
const GLOBAL_MEMORY_BUS_WIDTH: c_uint = 37;
const COMPUTE_CAPABILITY_MAJOR: c_uint = 75;
const COMPUTE_CAPABILITY_MINOR: c_uint = 76;
const MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: c_uint = 81;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_uint = 97;

/// The oldest architecture that the kernels are written for.
const OLDEST_GPU: (u32, u32) = (8, 0);

/// The option value that selects the device.
fn device_name(ordinal: u32) -> String {
    format!("cuda:{ordinal}")
}

/// One device, ready for work.
pub struct Context {
    driver: &'static Driver,
    info: DeviceInfo,
    handle: c_int,
    raw: CuContext,
    ledger: Ledger,
}

impl Context {
    /// All devices that the process may use, in the driver's order, whether kigo can run on them or not.
    ///
    /// # Errors
    /// Those of [`Driver::get`], and `DeviceError`.
    pub fn list() -> Result<Vec<DeviceInfo>> {
        let driver = Driver::get()?;
        (0..driver.n_devices()).map(|ordinal| Ok(describe(driver, ordinal)?.1)).collect()
    }

    /// What there is to know about one device, whether kigo can run on it or not.
    ///
    /// # Errors
    /// Those of [`Driver::get`]; `NoDevice`, `DeviceLost`, `DeviceError`.
    pub fn describe(ordinal: u32) -> Result<DeviceInfo> {
        let driver = Driver::get()?;
        check_exists(driver, ordinal)?;
        Ok(describe(driver, ordinal)?.1)
    }

    /// Whether a model can run on a device, without touching its memory.
    ///
    /// # Errors
    /// Those of [`Context::open`].
    pub fn check(ordinal: u32) -> Result<()> {
        let driver = Driver::get()?;
        check_usable(driver, ordinal).map(|_| ())
    }

    /// Makes a device ready. Contexts of one device share what the driver has for it, but each has its own ledger. The
    /// driver keeps that until the process ends, as it does for programs with CUDA's runtime: it takes 100 ms to make it.
    ///
    /// # Errors
    /// Those of [`Driver::get`]; `NoDevice`, `UnsupportedGpu`, `DeviceLost` when an earlier context of the device was
    /// lost, `OutOfMemory`, `DeviceError`.
    pub fn open(ordinal: u32) -> Result<Arc<Context>> {
        let driver = Driver::get()?;
        let (handle, info) = check_usable(driver, ordinal)?;
        let mut raw = CuContext::NULL;
        // SAFETY: `handle` is a device of the driver; it writes one pointer.
        let code = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&raw mut raw, handle) };
        check(driver, ordinal, "cuDevicePrimaryCtxRetain", code)?;
        if driver.kept.get(ordinal as usize).is_some_and(|kept| kept.set(()).is_ok()) {
            let mut again = CuContext::NULL;
            // SAFETY: as above.
            let code = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&raw mut again, handle) };
            // If it is refused, the next context is made anew; a lost device is noticed.
            let _ = check(driver, ordinal, "cuDevicePrimaryCtxRetain", code);
        }
        Ok(Arc::new(Context { driver, info, handle, raw, ledger: Ledger::default() }))
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The option value that selects the device, such as `cuda:0`.
    pub fn device(&self) -> String {
        device_name(self.info.ordinal)
    }

    /// What kigo has allocated through this context.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The driver.
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Makes the context current in this thread until the guard is dropped, then the host's is again. Calls of this
    /// module do so by themselves; one guard around many calls spares each of them two calls of the driver.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn bind(&self) -> Result<Bound<'_>> {
        check_lost(self.driver, self.info.ordinal)?;
        let before = BOUND.get();
        if before != self.raw {
            // SAFETY: `raw` is a context that this value keeps alive.
            let code = unsafe { (self.driver.functions.cuCtxPushCurrent)(self.raw) };
            self.checked("cuCtxPushCurrent", code)?;
            BOUND.set(self.raw);
        }
        Ok(Bound { context: self, before, thread: PhantomData })
    }

    /// Free memory of the device in bytes, as the driver sees it now.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn free_memory(&self) -> Result<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        self.call("cuMemGetInfo", |f| unsafe { (f.cuMemGetInfo)(&raw mut free, &raw mut total) })?;
        Ok(free as u64)
    }

    /// Whether the device is lost; then every call fails at once, and nothing is freed.
    pub fn is_lost(&self) -> bool {
        self.driver.losses.get(self.info.ordinal as usize).is_some_and(|loss| loss.get().is_some())
    }

    /// Asks the driver whether every live [`super::memory::DeviceBuffer`] lies in the memory of this device, and says
    /// how many bytes they have together.
    ///
    /// # Errors
    /// `Internal` names one that does not; `DeviceLost`, `DeviceError`.
    pub fn verify_residency(&self) -> Result<u64> {
        self.ledger.verify_residency(self)
    }

    /// Makes one call of the driver in this context. `make` makes it and returns its code; `name` is for messages.
    ///
    /// # Errors
    /// `DeviceLost` at once when the device is lost; else what the code means.
    pub(super) fn call(&self, name: &'static str, make: impl FnOnce(&Functions) -> Code) -> Result<()> {
        let _bound = self.bind()?;
        let code = make(&self.driver.functions);
        self.checked(name, code)
    }

    /// As [`Self::call`] for calls that free something: nobody hears of a failure, so it is tried once more; on a
    /// lost device nothing is called.
    pub(super) fn release(&self, name: &'static str, mut make: impl FnMut(&Functions) -> Code) {
        if self.call(name, &mut make).is_err() && !self.is_lost() {
            let _ = self.call(name, make);
        }
    }

    /// What a code of the call `name` means.
    pub(super) fn checked(&self, name: &'static str, code: Code) -> Result<()> {
        check(self.driver, self.info.ordinal, name, code)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        for _ in 0..2 {
            if self.is_lost() {
                return;
            }
            // SAFETY: `open` retained the context of this device once, and this releases it once.
            let code = unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease)(self.handle) };
            if self.checked("cuDevicePrimaryCtxRelease", code).is_ok() {
                return;
            }
        }
    }
}

thread_local! {
    /// The context that the innermost [`Bound`] of this thread made current. Nothing of the host runs while there is one.
    static BOUND: Cell<CuContext> = const { Cell::new(CuContext::NULL) };
}

/// A context that is current in this thread.
pub struct Bound<'a> {
    context: &'a Context,
    /// What the guard outside this one made current; this one pushed nothing if it is the same context.
    before: CuContext,
    /// The guard must be dropped in the thread that made it.
    thread: PhantomData<*const ()>,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let _ = self.thread;
        if self.before == self.context.raw {
            return;
        }
        BOUND.set(self.before);
        let mut popped = CuContext::NULL;
        // Also on a lost device: it only restores what the host had.
        let mut pop = || {
            // SAFETY: `bind` pushed in this thread, and guards are dropped in reverse order; it writes one pointer.
            let code = unsafe { (self.context.driver.functions.cuCtxPopCurrent)(&raw mut popped) };
            self.context.checked("cuCtxPopCurrent", code)
        };
        if pop().is_err() && !self.context.is_lost() {
            let _ = pop();
        }
    }
}

fn check_exists(driver: &Driver, ordinal: u32) -> Result<()> {
    if ordinal < driver.n_devices() { Ok(()) } else { Err(no_device(&device_name(ordinal), driver.n_devices())) }
}

/// A device that exists, is not lost and has an architecture that the kernels are written for.
fn check_usable(driver: &Driver, ordinal: u32) -> Result<(c_int, DeviceInfo)> {
    check_exists(driver, ordinal)?;
    check_lost(driver, ordinal)?;
    let (handle, info) = describe(driver, ordinal)?;
    if info.compute_capability < OLDEST_GPU {
        let expected = format!("sm_{}{} or later", OLDEST_GPU.0, OLDEST_GPU.1);
        let (device, found) = (device_name(ordinal), info.architecture());
        return Err(Error::UnsupportedGpu { device, found, name: info.name, expected });
    }
    Ok((handle, info))
}

/// The driver's number of a device, and what it says about it.
fn describe(driver: &Driver, ordinal: u32) -> Result<(c_int, DeviceInfo)> {
    let f = &driver.functions;
    let check = |call, code| check(driver, ordinal, call, code);
    let mut handle = 0;
    // SAFETY: it writes one integer; numbers out of range are refused.
    check("cuDeviceGet", unsafe { (f.cuDeviceGet)(&raw mut handle, ordinal as c_int) })?;
    let mut name = [0_u8; 256];
    // SAFETY: it writes at most as many bytes as `name` has, with a NUL.
    let code = unsafe { (f.cuDeviceGetName)(name.as_mut_ptr().cast::<c_char>(), name.len() as c_int, handle) };
    check("cuDeviceGetName", code)?;
    let mut total = 0_usize;
    // SAFETY: it writes one number.
    check("cuDeviceTotalMem", unsafe { (f.cuDeviceTotalMem)(&raw mut total, handle) })?;
    let attribute = |id| {
        let mut value = 0;
        // SAFETY: it writes one integer.
        check("cuDeviceGetAttribute", unsafe { (f.cuDeviceGetAttribute)(&raw mut value, id, handle) })?;
        Ok::<u32, Error>(value.unsigned_abs())
    };
    // In kHz and bits, two transfers a clock.
    let memory_clock = u64::from(attribute(MEMORY_CLOCK_RATE)?);
    let memory_width = u64::from(attribute(GLOBAL_MEMORY_BUS_WIDTH)?);
    let info = DeviceInfo {
        ordinal,
        name: String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned(),
        total_bytes: total as u64,
        compute_capability: (attribute(COMPUTE_CAPABILITY_MAJOR)?, attribute(COMPUTE_CAPABILITY_MINOR)?),
        n_sm: attribute(MULTIPROCESSOR_COUNT)?,
        block_shared_bytes: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        sm_shared_bytes: attribute(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        memory_rate: (memory_clock * 1000).saturating_mul(memory_width / 8 * 2),
    };
    Ok((handle, info))
}

/// # Errors
/// `DeviceLost` when the device is.
fn check_lost(driver: &Driver, ordinal: u32) -> Result<()> {
    match driver.losses.get(ordinal as usize).and_then(|loss| loss.get()) {
        None => Ok(()),
        Some(Loss { call, code }) => {
            Err(Error::DeviceLost { device: device_name(ordinal), call, code: *code, name: driver.error_name(*code) })
        }
    }
}

/// What a code of the call `name` means for a device; it is lost from a sticky one on.
fn check(driver: &Driver, ordinal: u32, call: &'static str, code: Code) -> Result<()> {
    match code {
        code::SUCCESS => Ok(()),
        code::OUT_OF_MEMORY => Err(Error::OutOfDriverMemory { device: device_name(ordinal), call }),
        code if code::is_sticky(code) => {
            if let Some(loss) = driver.losses.get(ordinal as usize) {
                let _ = loss.set(Loss { call, code });
            }
            check_lost(driver, ordinal)
        }
        code => Err(Error::DeviceError { device: device_name(ordinal), call, code, name: driver.error_name(code) }),
    }
}
