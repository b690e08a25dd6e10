// Python's lock while the core works, and its signals.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "softq/threads.h"

namespace softq::bindings {

namespace py = pybind11;

inline bool on_main_thread() {
  const auto main = py::module_::import("threading").attr("main_thread")().attr("ident");
  return main.cast<unsigned long>() == PyThread_get_thread_ident();
}

// Runs Python's handlers of the signals that have arrived; true if one has raised an exception.
inline bool signal_raised() {
  const py::gil_scoped_acquire lock;
  return PyErr_CheckSignals() != 0;
}

// Runs body without Python's lock. Signals are handled meanwhile, if this is the thread that
// handles them: an exception of a handler, such as KeyboardInterrupt, ends the call.
template <class Body>
auto released(const Body& body) {
  const bool handles_signals = on_main_thread();
  try {
    const py::gil_scoped_release release;
    std::optional<Interruptible> interruptible;
    if (handles_signals) interruptible.emplace(signal_raised);
    return body();
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

}  // namespace softq::bindings
