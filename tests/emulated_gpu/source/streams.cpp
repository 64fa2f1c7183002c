// Streams, events, captured graphs and copies.
//
// Work is put into a queue for each stream. Eagerly it runs at once; deferred it runs only when something waits for it,
// which is the latest that a real device could be: whatever was not waited for has not happened.
#include "common.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <set>

namespace emulated {

struct Stream {
    struct Item {
        Work work;
        std::vector<std::pair<Stream*, std::uint64_t>> after;
        std::uint64_t number;
    };

    int device;
    bool is_null, is_blocking;  // a blocking one keeps its order with the null stream
    unsigned flags;
    Graph* captured = nullptr;
    std::deque<Item> queue;
    std::uint64_t n_enqueued = 0, n_done = 0;
};

namespace {

constexpr unsigned kNonBlocking = 1;

struct Event {
    Stream* stream = nullptr;
    std::uint64_t number = 0;
    // Shared with the work that sets it: an event may be destroyed before that has run.
    std::shared_ptr<double> at_milliseconds = std::make_shared<double>(0);
};

std::set<Stream*>& streams() {
    static std::set<Stream*> all;
    return all;
}

std::set<Event*>& events() {
    static std::set<Event*> all;
    return all;
}

Stream* null_stream(int device) {
    static std::map<int, std::unique_ptr<Stream>> all;
    auto& found = all[device];
    if (!found) found.reset(new Stream{device, true, true, 0});
    return found.get();
}

std::uint64_t enqueue_after(Stream* stream, Work work, std::vector<std::pair<Stream*, std::uint64_t>> after) {
    if (stream->captured) {
        stream->captured->work.push_back(std::move(work));
        return stream->n_enqueued;
    }
    if (stream->is_null) {
        for (Stream* other : streams()) {
            if (other->device == stream->device && other->is_blocking) after.emplace_back(other, other->n_enqueued);
        }
    } else if (stream->is_blocking) {
        Stream* null = null_stream(stream->device);
        after.emplace_back(null, null->n_enqueued);
    }
    stream->queue.push_back({std::move(work), std::move(after), ++stream->n_enqueued});
    if (!options().is_deferred) run_until(stream, stream->n_enqueued);
    return stream->n_enqueued;
}

bool is_any_capturing() {
    return std::any_of(streams().begin(), streams().end(), [](const Stream* each) { return each->captured; });
}

bool is_done(const Event& event) { return !event.stream || event.stream->n_done >= event.number; }

double now_milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

enum Kind { kHostToHost = 0, kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3, kAny = 4 };

bool fits(int kind, bool is_from_device, bool is_to_device) {
    switch (kind) {
        case kHostToHost: return !is_from_device && !is_to_device;
        case kHostToDevice: return !is_from_device && is_to_device;
        case kDeviceToHost: return is_from_device && !is_to_device;
        case kDeviceToDevice: return is_from_device && is_to_device;
        default: return true;
    }
}

void count_copy(std::size_t bytes, bool is_from_device, bool is_to_device) {
    Counters& counted = counters();
    if (is_from_device && is_to_device) {
        ++counted.copies_within;
        counted.bytes_within += bytes;
    } else if (is_to_device) {
        ++counted.copies_to_device;
        counted.bytes_to_device += bytes;
    } else if (is_from_device) {
        ++counted.copies_to_host;
        counted.bytes_to_host += bytes;
    }
}

Error copy(void* to, const void* from, std::size_t bytes, int kind, Stream* stream, bool is_async) {
    if (!bytes) return kSuccess;
    if (const Error error = take_failed_launch()) return fail(error, "an earlier launch failed");
    const bool is_from_device = device_of(from) != kNoDeviceHere, is_to_device = device_of(to) != kNoDeviceHere;
    if (!fits(kind, is_from_device, is_to_device)) return fail(kInvalidValue, "a copy between other kinds of memory");
    count_copy(bytes, is_from_device, is_to_device);
    if (is_async && is_to_device && !is_from_device && !is_pinned(from)) {
        // From ordinary memory: read before the call returns.
        auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from),
                                                          static_cast<const char*>(from) + bytes);
        enqueue(stream, [=] {
            Access access;
            std::memcpy(to, staged->data(), bytes);
        });
        return kSuccess;
    }
    const std::uint64_t number = enqueue(stream, [=] {
        Access access;
        std::memmove(to, from, bytes);
    });
    // To ordinary memory: complete before the call returns.
    const bool is_awaited = !is_async || (is_from_device && !is_to_device && !is_pinned(to));
    if (!is_awaited) return kSuccess;
    if (stream->captured) return fail(kCaptureUnsupported, "a copy that waits while a stream is captured");
    ++counters().waits;
    run_until(stream, number);
    return kSuccess;
}

Error set_memory(void* to, int value, std::size_t bytes, Stream* stream) {
    if (bytes && device_of(to) == kNoDeviceHere) return fail(kInvalidValue, "memset of what is no device memory");
    enqueue(stream, [=] {
        Access access;
        std::memset(to, value, bytes);
    });
    return kSuccess;
}

}  // namespace

Stream* stream_of(void* handle) {
    // The null stream, and its two names in CUDA.
    const auto number = reinterpret_cast<std::uintptr_t>(handle);
    return number <= 2 ? null_stream(current_device()) : static_cast<Stream*>(handle);
}

int device_of_stream(const Stream* stream) { return stream->device; }

bool is_capturing(const Stream* stream) { return stream->captured; }

std::uint64_t enqueue(Stream* stream, Work work) { return enqueue_after(stream, std::move(work), {}); }

void run_until(Stream* stream, std::uint64_t number) {
    while (stream->n_done < number) {
        Stream::Item item = std::move(stream->queue.front());
        stream->queue.pop_front();
        for (const auto& [other, awaited] : item.after) run_until(other, awaited);
        item.work();
        stream->n_done = item.number;
    }
}

void run_device(int device) {
    Stream* null = null_stream(device);
    run_until(null, null->n_enqueued);
    for (Stream* each : streams()) {
        if (each->device == device) run_until(each, each->n_enqueued);
    }
}

}  // namespace emulated

using namespace emulated;

// Streams.

EXPORTED Error hipStreamCreateWithFlags(void** stream, unsigned flags) {
    Locked locked;
    auto* made = new Stream{current_device(), false, !(flags & kNonBlocking), flags};
    streams().insert(made);
    *stream = made;
    return kSuccess;
}

EXPORTED Error hipStreamCreate(void** stream) { return hipStreamCreateWithFlags(stream, 0); }

EXPORTED Error hipStreamCreateWithPriority(void** stream, unsigned flags, int) {
    return hipStreamCreateWithFlags(stream, flags);
}

EXPORTED Error hipStreamDestroy(void* handle) {
    Locked locked;
    auto* stream = static_cast<Stream*>(handle);
    // Others may wait for what it was given.
    run_until(stream, stream->n_enqueued);
    for (int device = 0; device < n_devices(); ++device) run_device(device);
    for (Event* event : events()) {
        if (event->stream == stream) event->stream = nullptr;
    }
    streams().erase(stream);
    delete stream;
    return kSuccess;
}

EXPORTED Error hipStreamSynchronize(void* handle) {
    Locked locked;
    Stream* stream = stream_of(handle);
    if (stream->captured) return fail(kCaptureUnsupported, "a wait for a stream that is captured");
    ++counters().waits;
    if (stream->is_null) enqueue(stream, [] {});
    run_until(stream, stream->n_enqueued);
    return take_failed_launch();
}

EXPORTED Error hipStreamQuery(void* handle) {
    Locked locked;
    const Stream* stream = stream_of(handle);
    return stream->n_done < stream->n_enqueued ? kNotReady : kSuccess;
}

EXPORTED Error hipDeviceSynchronize() {
    Locked locked;
    if (is_any_capturing()) return fail(kCaptureUnsupported, "a wait for a device while a stream is captured");
    ++counters().waits;
    run_device(current_device());
    return take_failed_launch();
}

EXPORTED Error hipStreamGetFlags(void* stream, unsigned* flags) {
    *flags = stream_of(stream)->flags;
    return kSuccess;
}

EXPORTED Error hipStreamGetPriority(void*, int* priority) {
    *priority = 0;
    return kSuccess;
}

EXPORTED int hipGetStreamDeviceId(void* stream) { return stream_of(stream)->device; }

EXPORTED Error hipStreamWaitEvent(void* handle, void* awaited, unsigned) {
    Locked locked;
    Stream* stream = stream_of(handle);
    const auto* event = static_cast<Event*>(awaited);
    if (event->stream && event->stream != stream) enqueue_after(stream, [] {}, {{event->stream, event->number}});
    return kSuccess;
}

EXPORTED Error hipLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    Locked locked;
    enqueue(stream_of(stream), [=] { function(data); });
    return kSuccess;
}

EXPORTED Error hipStreamAddCallback(void* stream, void (*function)(void*, Error, void*), void* data, unsigned) {
    Locked locked;
    enqueue(stream_of(stream), [=] { function(stream, kSuccess, data); });
    return kSuccess;
}

// Events.

EXPORTED Error hipEventCreateWithFlags(void** event, unsigned) {
    Locked locked;
    auto* made = new Event;
    events().insert(made);
    *event = made;
    return kSuccess;
}

EXPORTED Error hipEventCreate(void** event) { return hipEventCreateWithFlags(event, 0); }

EXPORTED Error hipEventDestroy(void* handle) {
    Locked locked;
    auto* event = static_cast<Event*>(handle);
    events().erase(event);
    delete event;
    return kSuccess;
}

EXPORTED Error hipEventRecord(void* handle, void* on) {
    Locked locked;
    auto* event = static_cast<Event*>(handle);
    event->stream = stream_of(on);
    // Of its own: an earlier record of the same event may not have run yet.
    event->at_milliseconds = std::make_shared<double>(0);
    event->number = enqueue(event->stream, [at = event->at_milliseconds] { *at = now_milliseconds(); });
    return kSuccess;
}

EXPORTED Error hipEventSynchronize(void* handle) {
    Locked locked;
    const auto* event = static_cast<Event*>(handle);
    ++counters().waits;
    if (event->stream) run_until(event->stream, event->number);
    return take_failed_launch();
}

EXPORTED Error hipEventQuery(void* handle) {
    Locked locked;
    return is_done(*static_cast<Event*>(handle)) ? kSuccess : kNotReady;
}

EXPORTED Error hipEventElapsedTime(float* milliseconds, void* begin, void* end) {
    Locked locked;
    const auto &first = *static_cast<Event*>(begin), &last = *static_cast<Event*>(end);
    if (!is_done(first) || !is_done(last)) return fail(kNotReady);
    *milliseconds = static_cast<float>(*last.at_milliseconds - *first.at_milliseconds);
    return kSuccess;
}

// Captured graphs: what is put into a stream that is captured is kept, and runs when the graph is launched.

EXPORTED Error hipStreamBeginCapture(void* handle, int) {
    Locked locked;
    Stream* stream = stream_of(handle);
    if (stream->is_null || stream->captured) return fail(kCaptureUnsupported, "capture of the null stream, or twice");
    stream->captured = new Graph;
    return kSuccess;
}

EXPORTED Error hipStreamEndCapture(void* handle, void** graph) {
    Locked locked;
    Stream* stream = stream_of(handle);
    if (!stream->captured) return fail(kCaptureInvalid, "the end of a capture that was not begun");
    *graph = stream->captured;
    stream->captured = nullptr;
    return kSuccess;
}

EXPORTED int emulated_gpu_is_capturing(void* stream) { return is_capturing(stream_of(stream)); }

EXPORTED Error hipStreamIsCapturing(void* stream, int* is_active) {
    *is_active = is_capturing(stream_of(stream));
    return kSuccess;
}

EXPORTED Error hipStreamGetCaptureInfo(void* stream, int* is_active, unsigned long long* id) {
    *is_active = is_capturing(stream_of(stream));
    if (id) *id = 1;
    return kSuccess;
}

EXPORTED Error hipGraphInstantiate(void** executable, void* graph, void*, void*, std::size_t) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return kSuccess;
}

EXPORTED Error hipGraphLaunch(void* executable, void* handle) {
    Locked locked;
    ++counters().launches;
    Stream* stream = stream_of(handle);
    for (const Work& work : static_cast<Graph*>(executable)->work) enqueue(stream, work);
    return kSuccess;
}

EXPORTED Error hipGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return kSuccess;
}

EXPORTED Error hipGraphExecDestroy(void* executable) {
    delete static_cast<Graph*>(executable);
    return kSuccess;
}

// Copies.

EXPORTED Error hipMemcpy(void* to, const void* from, std::size_t bytes, int kind) {
    Locked locked;
    return copy(to, from, bytes, kind, stream_of(nullptr), false);
}

EXPORTED Error hipMemcpyAsync(void* to, const void* from, std::size_t bytes, int kind, void* stream) {
    Locked locked;
    return copy(to, from, bytes, kind, stream_of(stream), true);
}

EXPORTED Error hipMemcpyPeer(void* to, int, const void* from, int, std::size_t bytes) {
    Locked locked;
    return copy(to, from, bytes, kAny, stream_of(nullptr), false);
}

EXPORTED Error hipMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t bytes, void* stream) {
    Locked locked;
    return copy(to, from, bytes, kAny, stream_of(stream), true);
}

EXPORTED Error hipMemset(void* to, int value, std::size_t bytes) {
    Locked locked;
    Stream* stream = stream_of(nullptr);
    const Error error = set_memory(to, value, bytes, stream);
    run_until(stream, stream->n_enqueued);
    return error;
}

EXPORTED Error hipMemsetAsync(void* to, int value, std::size_t bytes, void* stream) {
    Locked locked;
    return set_memory(to, value, bytes, stream_of(stream));
}
