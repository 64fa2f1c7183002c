// Modules and launches: what the compiler stand-in made is a shared library, loaded into this process.
#include "common.h"
#include "launch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <dlfcn.h>
#include <unistd.h>

namespace emulated {
namespace {

constexpr unsigned kMostThreads = 1024, kMostBlocksAside = 65535;

struct Function {
    void (*run)(Launch*, void**);
    std::vector<std::size_t> sizes;  // of its parameters, in bytes
    std::string name;
};

// Loads a library from memory, by way of a file that is gone on return. Its name is a new one each time: the dynamic
// linker would give back an older library of the same name.
void* load(const char* bytes, std::size_t n_bytes) {
    std::string path = (std::filesystem::temp_directory_path() / "emulated-gpu-kernel-XXXXXX").string();
    const int file = mkstemp(path.data());
    if (file < 0) return nullptr;
    while (n_bytes) {
        const ssize_t n_written = write(file, bytes, n_bytes);
        if (n_written <= 0) break;
        bytes += n_written;
        n_bytes -= n_written;
    }
    close(file);
    void* library = n_bytes ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    return library;
}

// Keeps the source of a kernel that is used, by a name that is the same for the same source. A kernel that CuPy takes from
// its cache is kept, too: what is there are the kernels of this run, no more and no fewer.
bool record(const char* source, std::size_t n_bytes) {
    namespace fs = std::filesystem;
    if (options().record.empty()) return true;
    const std::string text(source, n_bytes), name = std::to_string(std::hash<std::string>()(text));
    const fs::path folder = options().record, whole = folder / (name + ".cu");
    if (fs::exists(whole)) return true;
    std::error_code error;
    fs::create_directories(folder, error);
    // It gets its name once it is whole: other processes may write the same.
    const fs::path draft = folder / (name + "-" + std::to_string(getpid()));
    const bool is_written = static_cast<bool>((std::ofstream(draft, std::ios::binary) << text).flush());
    fs::rename(draft, whole, error);
    return is_written && !error;
}

bool is_possible(const unsigned (&grid)[3], const unsigned (&block)[3]) {
    const std::size_t n_threads = std::size_t{block[0]} * block[1] * block[2];
    return grid[0] && grid[1] && grid[2] && n_threads && n_threads <= kMostThreads && grid[1] <= kMostBlocksAside &&
           grid[2] <= kMostBlocksAside;
}

}  // namespace
}  // namespace emulated

using namespace emulated;

EXPORTED Error hipModuleLoadData(void** module, const void* image) {
    Locked locked;
    const auto* header = static_cast<const ImageHeader*>(image);
    if (std::memcmp(header->magic, kImageMagic, sizeof header->magic)) {
        return fail(kInvalidImage, "a module that was not compiled for the emulated device");
    }
    const char* library = reinterpret_cast<const char*>(header + 1);
    if (!record(library + header->n_bytes, header->n_source_bytes)) {
        return fail(kNotFound, "the folder of EMULATED_GPU_RECORD cannot be written to: " + options().record);
    }
    *module = load(library, header->n_bytes);
    return *module ? kSuccess : fail(kInvalidImage, "a module that cannot be loaded");
}

EXPORTED Error hipModuleLoad(void** module, const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::string image{std::istreambuf_iterator<char>(file), {}};
    if (image.size() < sizeof(ImageHeader)) return fail(kInvalidImage, path);
    return hipModuleLoadData(module, image.data());
}

// Launches that have not run yet may use it, so it stays.
EXPORTED Error hipModuleUnload(void*) { return kSuccess; }

EXPORTED Error hipModuleGetFunction(void** function, void* module, const char* name) {
    Locked locked;
    const std::string wanted = name;
    auto* run = reinterpret_cast<void (*)(Launch*, void**)>(dlsym(module, (kRunPrefix + wanted).c_str()));
    auto* sizes = reinterpret_cast<int (*)(std::size_t*)>(dlsym(module, (kSizesPrefix + wanted).c_str()));
    if (!run || !sizes) return fail(kNotFound, wanted);
    std::size_t found[256];
    const int n_parameters = sizes(found);
    *function = new Function{run, {found, found + n_parameters}, wanted};
    return kSuccess;
}

EXPORTED Error hipModuleGetGlobal(void** address, std::size_t* bytes, void* module, const char* name) {
    *address = dlsym(module, name);
    if (bytes) *bytes = 0;
    return *address ? kSuccess : fail(kNotFound, name);
}

EXPORTED Error hipFuncGetAttribute(int* value, int, void*) {
    *value = 0;
    return kSuccess;
}

EXPORTED Error hipModuleLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                     unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                                     void** parameters, void** extra) {
    Locked locked;
    const auto* function = static_cast<Function*>(handle);
    if (extra) return fail(kNotSupported, "a launch with packed parameters");
    const unsigned grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
    if (!is_possible(grid, block)) return fail(kInvalidConfiguration, "grid or block of " + function->name);
    ++counters().launches;
    // Parameters are read at the launch, as on a device.
    std::vector<std::string> values;
    for (std::size_t each = 0; each < function->sizes.size(); ++each) {
        values.emplace_back(static_cast<const char*>(parameters[each]), function->sizes[each]);
    }
    static unsigned seed = options().seed;
    Launch launch{{grid_x, grid_y, grid_z},
                  {block_x, block_y, block_z},
                  shared_bytes,
                  static_cast<int>(options().order),
                  seed++,
                  options().is_poisoned,
                  nullptr};
    const int device = device_of_stream(stream_of(stream));
    enqueue(stream_of(stream), [=]() mutable {
        std::vector<std::string> own = values;
        std::vector<void*> addresses;
        for (std::string& value : own) addresses.push_back(value.data());
        const Access access(device);
        launch.error = nullptr;
        function->run(&launch, addresses.data());
        if (launch.error) {
            fail(kLaunchFailure, function->name + ": " + launch.error);
            note_failed_launch(kLaunchFailure);
        }
    });
    return options().is_deferred ? kSuccess : take_failed_launch();
}

// For the linear algebra stand-in: each call is one launch.
EXPORTED void emulated_gpu_enqueue(void* stream, std::function<void()>* work) {
    Locked locked;
    ++counters().launches;
    enqueue(stream_of(stream), [own = *work, device = device_of_stream(stream_of(stream))] {
        const Access access(device);
        own();
    });
}

EXPORTED int emulated_gpu_is_device(const void* address) {
    Locked locked;
    return device_of(address) != kNoDeviceHere;
}

EXPORTED Error hipOccupancyMaxActiveBlocksPerMultiprocessor(int* n_blocks, const void*, int, std::size_t) {
    *n_blocks = 8;
    return kSuccess;
}

EXPORTED Error hipOccupancyMaxPotentialBlockSize(int* n_blocks, int* n_threads, const void*, std::size_t, int) {
    *n_blocks = 8;
    *n_threads = 256;
    return kSuccess;
}

// Kernels that were compiled into the wheel for another machine: they are registered as it is imported, and cannot run.

EXPORTED Error hipLaunchKernel() {
    note_failed_launch(kNotSupported);
    return fail(kNotSupported, "a kernel compiled into CuPy's wheel (sort, unique, random.Generator) cannot run here");
}

EXPORTED void** __hipRegisterFatBinary(void*) {
    static void* nothing;
    return &nothing;
}

EXPORTED void __hipUnregisterFatBinary(void*) {}

EXPORTED void __hipRegisterFunction(void**, void*, void*, const char*, int, void*, void*, void*, void*, void*) {}

EXPORTED Error __hipPushCallConfiguration() { return kSuccess; }

EXPORTED Error __hipPopCallConfiguration() { return kSuccess; }
