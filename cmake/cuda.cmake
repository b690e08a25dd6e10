# The CUDA core, pysoftq._cuda, and the same kernels on the CPU, pysoftq._cuda_emulated.
#
# Only nvcc is needed: CUB comes with it, the runtime is linked statically (so that the extension
# loads where there is no driver), and cuFFT is loaded when first used.

set(cuda_sources cpp/cuda/coupling.cpp cpp/cuda/device.cpp cpp/cuda/layers.cpp cpp/cuda/layout.cpp
                 cpp/cuda/libraries.cpp cpp/cuda/partition.cpp)
set(cuda_bindings cpp/cuda/bindings/bind_coupling.cpp cpp/cuda/bindings/bind_density.cpp
                  cpp/cuda/bindings/bind_device.cpp cpp/cuda/bindings/bind_pairs.cpp
                  cpp/cuda/bindings/bind_place.cpp cpp/cuda/bindings/bind_potential.cpp
                  cpp/cuda/bindings/module.cpp)
set(cuda_kernels cpp/cuda/density.cu cpp/cuda/energies.cu cpp/cuda/fft.cu cpp/cuda/force.cu
                 cpp/cuda/pairs.cu cpp/cuda/pieces.cu
                 cpp/cuda/potential.cu cpp/cuda/segments.cu cpp/cuda/sort.cu)

if(NOT PYSOFTQ_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "PYSOFTQ_CUDA=${PYSOFTQ_CUDA}: wanted AUTO, ON or OFF")
endif()
# Sets cuda_missing to what keeps the CUDA core from being built, or to nothing.
set(cuda_missing "PYSOFTQ_CUDA=OFF")
if(NOT PYSOFTQ_CUDA STREQUAL "OFF")
  find_program(PYSOFTQ_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
               PATH_SUFFIXES bin DOC "CUDA compiler")
  set(choose_architectures OFF)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(choose_architectures ON)
    set(CMAKE_CUDA_ARCHITECTURES 75)  # until the version of the compiler is known
  endif()
  if(PYSOFTQ_NVCC AND NOT DEFINED CMAKE_CUDA_COMPILER)
    set(ENV{CUDACXX} "${PYSOFTQ_NVCC}")
    include(CheckLanguage)
    check_language(CUDA)
  endif()
  if(NOT PYSOFTQ_NVCC)
    set(cuda_missing "no nvcc on the PATH, in CUDA_HOME or in /usr/local/cuda")
  elseif(NOT CMAKE_CUDA_COMPILER)
    set(cuda_missing "${PYSOFTQ_NVCC} does not work with ${CMAKE_CXX_COMPILER}")
  else()
    enable_language(CUDA)
    set(cuda_missing "")
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
      set(cuda_missing "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12")
    endif()
    # Machine code from Turing to Hopper or Blackwell; other devices compile the PTX.
    if(choose_architectures AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
      set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90)
    elseif(choose_architectures)
      set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100 120)
    endif()
  endif()
  if(cuda_missing AND PYSOFTQ_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PYSOFTQ_CUDA=ON, but ${cuda_missing}")
  endif()
endif()

if(cuda_missing)
  set(cuda_summary "off (${cuda_missing})")
else()
  set(cuda_summary "${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake before 3.26 does not know it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  endif()
  find_package(CUDAToolkit REQUIRED)
  pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda_sources} cpp/cuda/cufft.cpp
                      cpp/cuda/driver.cpp ${cuda_kernels})
  softq_add_bindings(_cuda ${cuda_bindings})
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " words)
  target_compile_definitions(_cuda PRIVATE PYSOFTQ_CUDA_MODULE=_cuda
                                           PYSOFTQ_CUDA_ARCHITECTURES="${words}")
  target_compile_options(
    _cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --threads 2
                  $<$<BOOL:${PYSOFTQ_WERROR}>:--Werror=all-warnings>>)
  target_link_libraries(_cuda PRIVATE softq CUDA::cudart_static ${CMAKE_DL_LIBS})
  # Where the registry's nvidia-cufft package puts its library.
  set_target_properties(_cuda PROPERTIES INSTALL_RPATH
                                         "$ORIGIN/../nvidia/cu13/lib;$ORIGIN/../nvidia/cufft/lib")
  install(TARGETS _cuda LIBRARY DESTINATION pysoftq)
endif()

if(PYSOFTQ_CUDA_EMULATION)
  # The host's compiler takes a kernel for C++ when a source of that language includes it; the
  # headers of the emulation stand in for CUDA's.
  set(emulated_kernels)
  foreach(kernel ${cuda_kernels})
    get_filename_component(name "${kernel}" NAME_WE)
    set(source "${PROJECT_BINARY_DIR}/cuda_emulation/${name}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"${PROJECT_SOURCE_DIR}/${kernel}\"\n")
    list(APPEND emulated_kernels "${source}")
  endforeach()
  pybind11_add_module(
    _cuda_emulated MODULE NO_EXTRAS ${cuda_sources} ${emulated_kernels}
    cpp/cuda/emulation/cufft.cpp cpp/cuda/emulation/fiber.cpp cpp/cuda/emulation/runtime.cpp)
  softq_add_bindings(_cuda_emulated ${cuda_bindings} cpp/cuda/emulation/bind.cpp)
  target_compile_definitions(_cuda_emulated PRIVATE PYSOFTQ_CUDA_MODULE=_cuda_emulated
                                                    PYSOFTQ_CUDA_ARCHITECTURES="native"
                                                    PYSOFTQ_CUDA_EMULATED)
  target_compile_options(_cuda_emulated PRIVATE -Wno-unknown-pragmas)  # unroll
  target_include_directories(_cuda_emulated BEFORE PRIVATE cpp/cuda cpp/cuda/emulation)
  target_link_libraries(_cuda_emulated PRIVATE softq softq_warnings ${CMAKE_DL_LIBS})
  install(TARGETS _cuda_emulated LIBRARY DESTINATION pysoftq)
endif()
