// A function with a stack of its own that can be left in the middle and entered again.
#pragma once

#include <functional>
#include <memory>

namespace softq::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next enter() begins the body. A body that was left in the middle is forgotten.
  void start(std::function<void()> body);
  // Runs the body until it leaves or returns.
  void enter();
  // Called in the body: goes back to who entered.
  void leave();

 private:
  struct Context;
  [[noreturn]] static void main(Fiber* fiber);
  static void entry();
  std::function<void()> body_;
  std::unique_ptr<char[]> stack_;
  std::unique_ptr<Context> context_;
};

}  // namespace softq::emulation
