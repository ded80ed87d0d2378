//! Kernels: compiled by `build.rs`, embedded in the library, loaded into a context.

use std::ffi::{CString, c_int, c_uint};
use std::sync::Arc;

use super::context::Context;
use super::driver::{CuFunction, CuModule, code};
use crate::{Error, Result};

/// Bytes where the driver likes them to be.
#[allow(dead_code, reason = "a build without kernels has no use for it")]
#[repr(C, align(64))]
struct Aligned<T>(T);

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Attribute of a function: the dynamic shared memory that a launch may ask for.
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;

/// A struct of `kernels/launch.h`: what a kernel takes, as its only parameter and by value.
///
/// # Safety
/// The type is `repr(C)`, laid out as the struct in `launch.h`; every address in it is one of the device that is valid
/// for what the kernel does there, whenever the kernel runs.
pub unsafe trait KernelParams: Copy {}

/// The kernels of one unit: "attention", or "matmul_Q4_K" where one source is compiled for every tensor type.
///
/// # Errors
/// `Internal` when the build has no such unit.
pub fn embedded(unit: &str) -> Result<&'static [u8]> {
    let found = FATBINS.iter().find(|(name, _)| *name == unit);
    found.map(|(_, fatbin)| *fatbin).ok_or_else(|| Error::Internal(format!("this build has no kernels \"{unit}\"")))
}

/// Kernels that are loaded into a context.
pub struct Module {
    loaded: Arc<Loaded>,
}

struct Loaded {
    context: Arc<Context>,
    raw: CuModule,
}

impl Module {
    /// Loads one of [`FATBINS`].
    ///
    /// # Errors
    /// `UnsupportedGpu` when it has no code for this one, `DriverTooOld` when the driver cannot read it;
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn load(context: &Arc<Context>, fatbin: &'static [u8]) -> Result<Module> {
        let mut raw = CuModule::NULL;
        // SAFETY: the image is a fat binary of nvcc, which says itself how long it is; it writes one pointer.
        let outcome =
            context.call("cuModuleLoadData", |f| unsafe { (f.cuModuleLoadData)(&raw mut raw, fatbin.as_ptr().cast()) });
        outcome.map_err(|error| refused(context, error))?;
        Ok(Module { loaded: Arc::new(Loaded { context: context.clone(), raw }) })
    }

    /// The kernel with this name.
    ///
    /// # Errors
    /// `DeviceError` when there is none, `Internal` when it takes no parameter; `DeviceLost`.
    pub fn function(&self, name: &str) -> Result<Function> {
        let loaded = &self.loaded;
        let c_name = CString::new(name).map_err(|_| Error::Internal(format!("kernel {name:?}")))?;
        let mut raw = CuFunction::NULL;
        // SAFETY: the module is alive and the name ends with a NUL; it writes one pointer.
        loaded.context.call("cuModuleGetFunction", |f| unsafe {
            (f.cuModuleGetFunction)(&raw mut raw, loaded.raw, c_name.as_ptr())
        })?;
        let (mut offset, mut params_bytes) = (0, 0);
        // SAFETY: the function is alive; it writes two numbers.
        loaded.context.call("cuFuncGetParamInfo", |f| unsafe {
            (f.cuFuncGetParamInfo)(raw, 0, &raw mut offset, &raw mut params_bytes)
        })?;
        Ok(Function { loaded: loaded.clone(), raw, params_bytes, name: name.to_string() })
    }
}

/// Whether this build has machine code for `arch`, as `KIGO_CUDA_ARCHS` names it.
pub fn has_code_for(arch: &str) -> bool {
    ARCHS.split(',').any(|found| found == arch)
}

/// What it means that the driver does not take the kernels.
fn refused(context: &Context, error: Error) -> Error {
    let Error::DeviceError { code, call, name, .. } = &error else { return error };
    let (major, minor) = context.driver().version();
    let info = context.info();
    match *code {
        code::UNSUPPORTED_PTX_VERSION | code::INVALID_IMAGE | code::NO_BINARY_FOR_GPU if major < TOOLKIT.0 => {
            Error::DriverTooOld {
                found: format!("{major}.{minor}"),
                needed: format!("{}.0", TOOLKIT.0),
                note: format!(", whose {call} returned {code} ({name})"),
            }
        }
        code::UNSUPPORTED_PTX_VERSION => Error::DriverTooOld {
            found: format!("{major}.{minor}"),
            needed: format!("{}.{}", TOOLKIT.0, TOOLKIT.1),
            note: format!(", whose {call} returned {code} ({name}) for {}", info.architecture()),
        },
        code::NO_BINARY_FOR_GPU => Error::UnsupportedGpu {
            device: context.device(),
            name: info.name.clone(),
            found: info.architecture(),
            expected: format!("one of those that this build has code for: {ARCHS}"),
        },
        _ => error,
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the module is this value's own, and no function of it is left.
        self.context.release("cuModuleUnload", |f| unsafe { (f.cuModuleUnload)(self.raw) });
    }
}

/// A kernel; it keeps its module loaded.
#[derive(Clone)]
pub struct Function {
    loaded: Arc<Loaded>,
    raw: CuFunction,
    params_bytes: usize,
    name: String,
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size of its parameter.
    pub fn params_bytes(&self) -> usize {
        self.params_bytes
    }

    pub(super) fn raw(&self) -> CuFunction {
        self.raw
    }

    /// Allows launches with so much dynamic shared memory; needed beyond 48 KiB.
    ///
    /// # Errors
    /// `DeviceError` when the device has less, `DeviceLost`.
    pub fn set_max_shared_bytes(&self, bytes: u32) -> Result<()> {
        // SAFETY: the function is alive; values out of range are refused.
        self.loaded.context.call("cuFuncSetAttribute", |f| unsafe {
            (f.cuFuncSetAttribute)(self.raw, MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes as c_int)
        })
    }
}
