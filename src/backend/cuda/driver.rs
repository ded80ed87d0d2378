//! The driver library of the machine: loaded by hand, so that one build of kigo runs with and without it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::{Error, Result};

/// What a call of the driver returns: 0, or the number of an error. An integer, because later drivers have more.
pub(super) type Code = c_int;

/// Numbers of the driver's errors that kigo treats in ways of their own.
pub(super) mod code {
    use super::Code;

    pub const SUCCESS: Code = 0;
    pub const OUT_OF_MEMORY: Code = 2;
    pub const STUB_LIBRARY: Code = 34;
    pub const CALL_REQUIRES_NEWER_DRIVER: Code = 36;
    pub const NO_DEVICE: Code = 100;
    pub const INVALID_IMAGE: Code = 200;
    pub const NO_BINARY_FOR_GPU: Code = 209;
    pub const UNSUPPORTED_PTX_VERSION: Code = 222;
    pub const NOT_READY: Code = 600;
    pub const SYSTEM_DRIVER_MISMATCH: Code = 803;
    pub const COMPAT_NOT_SUPPORTED_ON_DEVICE: Code = 804;

    /// Whether nothing works any more in this process after an error: the context is corrupt, or gone.
    pub fn is_sticky(code: Code) -> bool {
        // Deinitialized; uncorrectable ECC and NVLink errors; contained error; illegal address; timeout; context
        // destroyed; assert; stack, instruction, alignment, address space, counter; launch failed; tensor memory;
        // MPS client gone; unknown.
        matches!(code, 4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 810 | 999)
    }
}

/// An object of the driver; never followed.
macro_rules! objects {
    ($($name:ident: $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(transparent)]
        pub(super) struct $name(*mut c_void);

        impl $name {
            pub const NULL: $name = $name(std::ptr::null_mut());
        }

        // SAFETY: the driver allows its objects to be used from any thread, and nothing else follows the pointer.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}
    )*};
}

objects! {
    CuContext: "`CUcontext`.";
    CuStream: "`CUstream`.";
    CuEvent: "`CUevent`.";
    CuGraph: "`CUgraph`.";
    CuGraphExec: "`CUgraphExec`.";
    CuModule: "`CUmodule`.";
    CuFunction: "`CUfunction`.";
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct CuLaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: CuStream,
    pub attributes: *const CuLaunchAttribute,
    pub n_attributes: c_uint,
}

/// `CUlaunchAttribute`, whose value is a union of 64 bytes.
#[repr(C, align(8))]
pub(super) struct CuLaunchAttribute {
    pub id: c_uint,
    pub pad: [u8; 4],
    pub value: [c_int; 16],
}

const _: () = assert!(size_of::<CuLaunchConfig>() == 56 && size_of::<CuLaunchAttribute>() == 72);

/// One row per function: the symbol, and what it takes. All return a [`Code`].
macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions of the driver, under their own names without the suffix of their version.
        #[allow(non_snake_case, reason = "the driver's own names")]
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Functions {
            /// # Errors
            /// The name of the first function that the library does not have.
            fn find(library: &Library) -> std::result::Result<Functions, &'static str> {
                Ok(Functions {
                    $(
                        $name: {
                            // SAFETY: the types are those of the driver's header, `cuda.h`.
                            let symbol = unsafe {
                                library.get::<unsafe extern "C" fn($($argument),*) -> Code>($symbol.to_bytes_with_nul())
                            };
                            *symbol.map_err(|_| stringify!($name))?
                        },
                    )*
                })
            }
        }
    };
}

functions! {
    cuInit = c"cuInit" (c_uint);
    cuGetErrorName = c"cuGetErrorName" (Code, *mut *const c_char);
    cuDeviceGetCount = c"cuDeviceGetCount" (*mut c_int);
    cuDeviceGet = c"cuDeviceGet" (*mut c_int, c_int);
    cuDeviceGetName = c"cuDeviceGetName" (*mut c_char, c_int, c_int);
    cuDeviceTotalMem = c"cuDeviceTotalMem_v2" (*mut usize, c_int);
    cuDeviceGetAttribute = c"cuDeviceGetAttribute" (*mut c_int, c_uint, c_int);
    cuDevicePrimaryCtxRetain = c"cuDevicePrimaryCtxRetain" (*mut CuContext, c_int);
    cuDevicePrimaryCtxRelease = c"cuDevicePrimaryCtxRelease_v2" (c_int);
    cuCtxPushCurrent = c"cuCtxPushCurrent_v2" (CuContext);
    cuCtxPopCurrent = c"cuCtxPopCurrent_v2" (*mut CuContext);
    cuMemGetInfo = c"cuMemGetInfo_v2" (*mut usize, *mut usize);
    cuMemAlloc = c"cuMemAlloc_v2" (*mut u64, usize);
    cuMemFree = c"cuMemFree_v2" (u64);
    cuMemHostAlloc = c"cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    cuMemFreeHost = c"cuMemFreeHost" (*mut c_void);
    cuMemHostRegister = c"cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    cuMemHostUnregister = c"cuMemHostUnregister" (*mut c_void);
    cuMemHostGetDevicePointer = c"cuMemHostGetDevicePointer_v2" (*mut u64, *mut c_void, c_uint);
    cuMemcpyHtoDAsync = c"cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, CuStream);
    cuMemcpyDtoHAsync = c"cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, CuStream);
    cuMemcpyDtoDAsync = c"cuMemcpyDtoDAsync_v2" (u64, u64, usize, CuStream);
    cuMemsetD8Async = c"cuMemsetD8Async" (u64, u8, usize, CuStream);
    cuPointerGetAttribute = c"cuPointerGetAttribute" (*mut c_void, c_uint, u64);
    cuStreamCreate = c"cuStreamCreate" (*mut CuStream, c_uint);
    cuStreamDestroy = c"cuStreamDestroy_v2" (CuStream);
    cuStreamSynchronize = c"cuStreamSynchronize" (CuStream);
    cuStreamWaitEvent = c"cuStreamWaitEvent" (CuStream, CuEvent, c_uint);
    cuStreamBeginCapture = c"cuStreamBeginCapture_v2" (CuStream, c_uint);
    cuStreamEndCapture = c"cuStreamEndCapture" (CuStream, *mut CuGraph);
    cuGraphInstantiate = c"cuGraphInstantiateWithFlags" (*mut CuGraphExec, CuGraph, c_ulonglong);
    cuGraphDestroy = c"cuGraphDestroy" (CuGraph);
    cuGraphExecDestroy = c"cuGraphExecDestroy" (CuGraphExec);
    cuGraphLaunch = c"cuGraphLaunch" (CuGraphExec, CuStream);
    cuEventCreate = c"cuEventCreate" (*mut CuEvent, c_uint);
    cuEventDestroy = c"cuEventDestroy_v2" (CuEvent);
    cuEventRecord = c"cuEventRecord" (CuEvent, CuStream);
    cuStreamQuery = c"cuStreamQuery" (CuStream);
    cuEventQuery = c"cuEventQuery" (CuEvent);
    cuEventSynchronize = c"cuEventSynchronize" (CuEvent);
    cuEventElapsedTime = c"cuEventElapsedTime" (*mut f32, CuEvent, CuEvent);
    cuModuleLoadData = c"cuModuleLoadData" (*mut CuModule, *const c_void);
    cuModuleUnload = c"cuModuleUnload" (CuModule);
    cuModuleGetFunction = c"cuModuleGetFunction" (*mut CuFunction, CuModule, *const c_char);
    cuFuncSetAttribute = c"cuFuncSetAttribute" (CuFunction, c_uint, c_int);
    cuFuncGetParamInfo = c"cuFuncGetParamInfo" (CuFunction, usize, *mut usize, *mut usize);
    cuLaunchKernelEx = c"cuLaunchKernelEx" (*const CuLaunchConfig, CuFunction, *mut *mut c_void, *mut *mut c_void);
}

/// The oldest CUDA version whose drivers have all the functions, as the driver writes it: 1000 * major + 10 * minor.
const OLDEST: c_int = 12040;

#[cfg(not(windows))]
const LIBRARY_NAME: &str = "libcuda.so.1";
#[cfg(windows)]
const LIBRARY_NAME: &str = "nvcuda.dll";

/// How a device failed for good.
pub(super) struct Loss {
    pub call: &'static str,
    pub code: Code,
}

/// The driver of the machine, initialised.
pub struct Driver {
    pub(super) functions: Functions,
    version: c_int,
    /// One per device: set once it is lost, for this process and for ever.
    pub(super) losses: Vec<OnceLock<Loss>>,
    /// One per device: set once its context stays.
    pub(super) kept: Vec<OnceLock<()>>,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Once loaded it stays, also when it does not start: drivers do not like to be unloaded.
static LIBRARY: OnceLock<Library> = OnceLock::new();

impl Driver {
    /// The driver. It is loaded by the first call; a failure is not remembered, the next call tries again.
    ///
    /// # Errors
    /// `NoDriver`, `DriverTooOld`, `NoDevice` when there is none at all, `DeviceError` when it does not start.
    pub fn get() -> Result<&'static Driver> {
        match DRIVER.get() {
            Some(driver) => Ok(driver),
            None => {
                let driver = Driver::load()?;
                Ok(DRIVER.get_or_init(|| driver))
            }
        }
    }

    fn load() -> Result<Driver> {
        let library = match LIBRARY.get() {
            Some(library) => library,
            None => {
                // SAFETY: the driver's library may be loaded at any time, from any thread.
                let library = unsafe { Library::new(LIBRARY_NAME) }
                    .map_err(|error| Error::NoDriver { reason: error.to_string().replace('\n', " ") })?;
                LIBRARY.get_or_init(|| library)
            }
        };
        let mut version = 0;
        // SAFETY: the function has this type since the first drivers.
        let get_version = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> Code>(b"cuDriverGetVersion\0") };
        match get_version {
            // SAFETY: it writes one integer, and may be called before the driver is initialised.
            Ok(get_version) => check_start("cuDriverGetVersion", unsafe { get_version(&raw mut version) }, 0, None)?,
            Err(_) => return Err(Error::NoDriver { reason: format!("{LIBRARY_NAME} is not that of a driver") }),
        }
        let found = Functions::find(library);
        if version < OLDEST {
            return Err(too_old(version, OLDEST, String::new()));
        }
        let functions = found.map_err(|name| too_old(version, OLDEST, format!(", which lacks {name}")))?;
        // SAFETY: 0 is the only value that the argument may have.
        check_start("cuInit", unsafe { (functions.cuInit)(0) }, version, Some(&functions))?;
        let mut count = 0;
        // SAFETY: the driver is initialised; it writes one integer.
        let code = unsafe { (functions.cuDeviceGetCount)(&raw mut count) };
        check_start("cuDeviceGetCount", code, version, Some(&functions))?;
        if count < 1 {
            return Err(no_device("cuda", 0));
        }
        let losses = (0..count).map(|_| OnceLock::new()).collect();
        let kept = (0..count).map(|_| OnceLock::new()).collect();
        Ok(Driver { functions, version, losses, kept })
    }

    /// The CUDA version that the driver is for: major, minor.
    pub fn version(&self) -> (u32, u32) {
        let version = self.version.unsigned_abs();
        (version / 1000, version % 1000 / 10)
    }

    /// How many devices the process may use.
    pub fn n_devices(&self) -> u32 {
        self.losses.len() as u32
    }

    /// The driver's own name for an error.
    pub(super) fn error_name(&self, code: Code) -> String {
        error_name(&self.functions, code)
    }
}

fn error_name(functions: &Functions, code: Code) -> String {
    let mut name = std::ptr::null();
    // SAFETY: it writes one pointer, to a text that lives as long as the driver, or NULL.
    let found = unsafe { (functions.cuGetErrorName)(code, &raw mut name) };
    if found != code::SUCCESS || name.is_null() {
        return "unknown error".into();
    }
    // SAFETY: not NULL, so it is a NUL-terminated text of the driver.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// Turns the outcome of a call that concerns no single device into an error.
fn check_start(call: &'static str, code: Code, version: c_int, functions: Option<&Functions>) -> Result<()> {
    let name = || functions.map_or("unknown error".into(), |functions| error_name(functions, code));
    match code {
        code::SUCCESS => Ok(()),
        code::NO_DEVICE => Err(no_device("cuda", 0)),
        code::STUB_LIBRARY => {
            Err(Error::NoDriver { reason: format!("{LIBRARY_NAME} is the stub of the CUDA toolkit, not a driver") })
        }
        code::CALL_REQUIRES_NEWER_DRIVER | code::SYSTEM_DRIVER_MISMATCH | code::COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            Err(too_old(version, OLDEST, format!(", whose {call} returned {code} ({})", name())))
        }
        code::OUT_OF_MEMORY => Err(Error::OutOfDriverMemory { device: "cuda".into(), call }),
        code => Err(Error::DeviceError { device: "cuda".into(), call, code, name: name() }),
    }
}

/// `device` does not exist among `found` devices.
pub(super) fn no_device(device: &str, found: u32) -> Error {
    let note = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => format!(" with CUDA_VISIBLE_DEVICES={}", crate::error::quoted(visible.as_bytes())),
        Err(_) => String::new(),
    };
    Error::NoDevice { device: device.to_string(), found, note }
}

/// Versions as the driver writes them.
fn too_old(found: c_int, needed: c_int, note: String) -> Error {
    let text = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
    Error::DriverTooOld { found: text(found), needed: text(needed), note }
}
