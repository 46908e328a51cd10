// Lets tensors without memory claim to be on a CUDA device in a PyTorch that was built without CUDA: changing the current
// device, which most operators do first, does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;

extern "C" void install() {
    c10::impl::device_guard_impl_registry[static_cast<int>(c10::DeviceType::CUDA)].store(&guard);
}
