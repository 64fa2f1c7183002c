// Stands in for the run-time compiler: g++ makes a shared library of a kernel's source, with kernel.h before it.
#include "launch.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

extern char** environ;

namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

constexpr int kSuccess = 0, kCompilation = 6, kUnknownName = 10;

// CuPy puts these before each kernel of its own making; compiled once, they halve the time that a kernel takes.
const std::string kPrologue =
    "#include <cupy/complex.cuh>\n#include <cupy/carray.cuh>\n#include <cupy/atomics.cuh>\n"
    "#include <cupy/math_constants.h>\n#include <cupy/hip_workaround.cuh>\n";

struct Program {
    std::string source, code, log;
    Words expressions;                        // names of template instances that are wanted
    std::map<std::string, std::string> names;  // those, each with its name in the library
    std::map<std::string, std::string> headers;
};

std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// A folder that goes with this object.
class Scratch {
  public:
    Scratch() {
        std::string pattern = (fs::temp_directory_path() / "emulated-gpu-XXXXXX").string();
        path_ = mkdtemp(pattern.data()) ? pattern : "";
    }
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    fs::path operator/(const std::string& name) const { return path_ / name; }
    const fs::path& path() const { return path_; }

  private:
    fs::path path_;
};

// Held by one process at a time.
class FileLock {
  public:
    explicit FileLock(const fs::path& path) : file_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
        if (file_ >= 0) flock(file_, LOCK_EX);
    }
    ~FileLock() {
        if (file_ >= 0) close(file_);
    }
    FileLock(const FileLock&) = delete;
    FileLock& operator=(const FileLock&) = delete;

  private:
    int file_;
};

bool run(const Words& command, const fs::path& log) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    // The compiler is not to load the stand-ins that this process found by its library path.
    Words kept;
    for (char** each = environ; *each; ++each) {
        if (std::strncmp(*each, "LD_LIBRARY_PATH=", 16)) kept.emplace_back(*each);
    }
    std::vector<char*> environment;
    for (std::string& each : kept) environment.push_back(each.data());
    environment.push_back(nullptr);
    pid_t process;
    const int error = posix_spawnp(&process, arguments[0], &actions, nullptr, arguments.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    int status = 0;
    return !error && waitpid(process, &status, 0) == process && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

fs::path own_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&own_folder), &info);
    return fs::absolute(info.dli_fname).parent_path();
}

bool begins_with(const std::string& text, const std::string& start) { return text.compare(0, start.size(), start) == 0; }

// What g++ takes too.
Words taken_over(int n_options, const char** options) {
    Words taken;
    for (int each = 0; each < n_options; ++each) {
        std::string option = options[each];
        if (begins_with(option, "--std")) option.erase(0, 1);
        if (begins_with(option, "-I") || begins_with(option, "-D") || begins_with(option, "-std=")) taken.push_back(option);
    }
    return taken;
}

bool needs_fibers(const std::string& source) {
    static const std::regex together("__syncthreads|__shfl|__syncwarp|__ballot|cooperative_groups");
    return std::regex_search(source, together);
}

// Shared memory of a size that the launch gives becomes a pointer to it.
std::string with_shared_memory(const std::string& source) {
    static const std::regex declared(
        "extern\\s+__shared__\\s+([\\w: ]+?)\\s*(?:__align__\\(\\d+\\)\\s*)?(\\w+)\\s*\\[\\s*\\]\\s*;");
    return std::regex_replace(source, declared, "$1* $2 = ($1*)emulated::shared_memory;");
}

// Exports each kernel that is no template, by its name, and each instance of one that was asked for.
std::string exports(Program& program, const std::string& source) {
    static const std::regex kernel(
        "__global__\\s+(?:__launch_bounds__\\s*\\([^)]*\\)\\s*)?void\\s+(?:__launch_bounds__\\s*\\([^)]*\\)\\s*)?"
        "(\\w+)\\s*\\(");
    std::string lines;
    for (std::sregex_iterator found(source.begin(), source.end(), kernel), end; found != end; ++found) {
        const std::size_t at = found->position(), from = at > 200 ? at - 200 : 0;
        const std::string before = source.substr(from, at - from);
        const std::size_t word = before.rfind("template");
        const bool is_template = word != std::string::npos && before.find_first_of(";{}", word) == std::string::npos;
        if (!is_template) lines += "EMULATED_GPU_EXPORT(" + (*found)[1].str() + ", " + (*found)[1].str() + ")\n";
    }
    int number = 0;
    for (const std::string& expression : program.expressions) {
        const std::string name = "instance" + std::to_string(number++);
        lines += "EMULATED_GPU_EXPORT(" + name + ", (" + expression + "))\n";
        program.names[expression] = name;
    }
    return lines;
}

std::string joined(const Words& words) {
    std::string text;
    for (const std::string& word : words) text += word + "\n";
    return text;
}

// The prologue, compiled once for a set of options beside the libraries; empty where that fails.
fs::path precompiled(const Words& compiler) {
    const std::string key = std::to_string(std::hash<std::string>()(joined(compiler)));
    const fs::path folder = own_folder() / ("prologue-" + key), done = folder / "prologue.h.gch";
    if (fs::exists(done)) return folder;
    std::error_code error;
    fs::create_directories(folder, error);
    const FileLock lock(folder / "lock");
    if (fs::exists(done)) return folder;
    std::ofstream(folder / "prologue.h") << "#include \"kernel.h\"\n" << kPrologue;
    // It gets its name once it is whole: whoever does not take the lock sees all of it or nothing.
    const fs::path draft = folder / ("draft-" + std::to_string(getpid()) + ".gch");
    Words command = compiler;
    command.insert(command.end(), {"-x", "c++-header", (folder / "prologue.h").string(), "-o", draft.string()});
    if (!run(command, folder / "log")) return {};
    fs::rename(draft, done, error);
    return error ? fs::path() : folder;
}

int compile(Program& program, const Words& options) {
    const Scratch scratch;
    if (scratch.path().empty()) return kCompilation;
    for (const auto& [name, text] : program.headers) {
        fs::create_directories((scratch / name).parent_path());
        std::ofstream(scratch / name) << text;
    }
    std::string source = with_shared_memory(program.source);
    const bool has_fibers = needs_fibers(source);
    const char* chosen = std::getenv("EMULATED_GPU_CXX");
    Words compiler = {chosen ? chosen : "g++", "-std=c++17", "-O1",   "-fno-strict-aliasing", "-ffp-contract=off", "-w",
                      "-fPIC", "-I" + own_folder().string(), has_fibers ? "-DEMULATED_GPU_FIBERS=1" : "-DEMULATED_GPU_FIBERS=0"};
    compiler.insert(compiler.end(), options.begin(), options.end());
    const std::string last_lines = exports(program, source);
    Words command = compiler;
    const fs::path prologue = begins_with(source, kPrologue) ? precompiled(compiler) : fs::path();
    if (prologue.empty()) {
        command.insert(command.end(), {"-include", "kernel.h"});
    } else {
        command.insert(command.end(), {"-I" + prologue.string(), "-include", "prologue.h"});
        source.erase(0, kPrologue.size());
    }
    std::ofstream(scratch / "kernel.cpp") << "#line 1 \"kernel\"\n" << source << "\n" << last_lines;
    command.insert(command.end(), {"-I" + scratch.path().string(), "-shared", (scratch / "kernel.cpp").string(), "-o",
                                   (scratch / "kernel.so").string()});
    const bool is_done = run(command, scratch / "log");
    program.log = read(scratch / "log");
    if (!is_done) return kCompilation;
    const std::string library = read(scratch / "kernel.so");
    emulated::ImageHeader header;
    std::memcpy(header.magic, emulated::kImageMagic, sizeof header.magic);
    header.n_bytes = library.size();
    header.n_source_bytes = program.source.size();
    program.code.assign(reinterpret_cast<const char*>(&header), sizeof header);
    // CuPy takes the last byte for the end of a string, and puts a zero there.
    program.code += library + program.source + '\0';
    return kSuccess;
}

}  // namespace

EXPORTED const char* hiprtcGetErrorString(int error) { return error ? "HIPRTC_ERROR_COMPILATION" : "HIPRTC_SUCCESS"; }

EXPORTED int hiprtcVersion(int* major, int* minor) {
    *major = 7;
    *minor = 1;
    return kSuccess;
}

EXPORTED int hiprtcCreateProgram(Program** program, const char* source, const char*, int n_headers,
                                 const char** headers, const char** names) {
    *program = new Program{source, {}, {}, {}, {}, {}};
    for (int each = 0; each < n_headers; ++each) (*program)->headers[names[each]] = headers[each];
    return kSuccess;
}

EXPORTED int hiprtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return kSuccess;
}

EXPORTED int hiprtcAddNameExpression(Program* program, const char* expression) {
    program->expressions.emplace_back(expression);
    return kSuccess;
}

EXPORTED int hiprtcGetLoweredName(Program* program, const char* expression, const char** name) {
    const auto found = program->names.find(expression);
    if (found == program->names.end()) return kUnknownName;
    *name = found->second.c_str();
    return kSuccess;
}

EXPORTED int hiprtcCompileProgram(Program* program, int n_options, const char** options) {
    // CuPy compiles an empty kernel to learn the compiler's version, which is part of its cache's keys: what was compiled
    // with another kernel.h is not to be found there.
    if (program->source.find("_cupy_preprocess_dummy_kernel_") != std::string::npos && program->source.size() < 400) {
        program->code = "emulated GPU " EMULATED_GPU_BUILT_FROM;
        return kSuccess;
    }
    return compile(*program, taken_over(n_options, options));
}

EXPORTED int hiprtcGetCodeSize(Program* program, std::size_t* n_bytes) {
    *n_bytes = program->code.size();
    return kSuccess;
}

EXPORTED int hiprtcGetCode(Program* program, char* into) {
    std::memcpy(into, program->code.data(), program->code.size());
    return kSuccess;
}

EXPORTED int hiprtcGetProgramLogSize(Program* program, std::size_t* n_bytes) {
    *n_bytes = program->log.size() + 1;
    return kSuccess;
}

EXPORTED int hiprtcGetProgramLog(Program* program, char* into) {
    std::memcpy(into, program->log.c_str(), program->log.size() + 1);
    return kSuccess;
}
