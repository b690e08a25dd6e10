# pocketfft in its maintained form: the one-dimensional real plan of ducc0.fft.
#
# Provides the target `ducc0_fft`:
#   include    "ducc0/fft/fft1d_impl.h"   (a SYSTEM include: our warnings do not reach it)
#   use        ducc0::detail_fft::pocketfft_r<double>
#   sources    the infrastructure that the plan calls (threading.cc, string_utils.cc)
#   defines    DUCC0_NO_LOWLEVEL_THREADING (publicly): the plan never starts threads of its own
# Include fft1d_impl.h in one translation unit only; it takes about 20 s to compile.
#
# Nothing is vendored: the source distribution is fetched by name, at a pinned version and hash,
# by the build environment's own pip (one file, kept in the build folder), or
# PYSOFTQ_DUCC0_DIR names a folder that holds the unpacked sources.

set(ducc0_version 0.42.0)
set(ducc0_sha256 4e11c59b53a43355b053aebb2a62ee16eebeed026575f7d216cf09d437ce52ef)

function(pysoftq_fetch_ducc0 out_folder)
  set(folder "${PROJECT_BINARY_DIR}/ducc0")
  set(archive "${folder}/ducc0-${ducc0_version}.tar.gz")
  set(sources "${folder}/ducc0-${ducc0_version}")
  if(NOT EXISTS "${sources}/src/ducc0/fft/fft1d_impl.h")
    message(STATUS "Fetching the sources of ducc0 ${ducc0_version}")
    file(MAKE_DIRECTORY "${folder}")
    file(WRITE "${folder}/requirement.txt"
         "ducc0==${ducc0_version} --hash=sha256:${ducc0_sha256}\n")
    # pip reads the package's metadata with scikit-build-core, which our own build needs anyway
    # (SKBUILD_WHEEL_CMAKE: without looking for the CMake that building ducc0 itself would want).
    # Without build isolation this takes seconds.
    execute_process(
      COMMAND "${CMAKE_COMMAND}" -E env SKBUILD_WHEEL_CMAKE=0 "${Python_EXECUTABLE}" -m pip download
              --quiet --disable-pip-version-check --no-deps --no-binary ducc0
              --no-build-isolation --require-hashes
              --requirement "${folder}/requirement.txt" --dest "${folder}"
      RESULT_VARIABLE result
      OUTPUT_VARIABLE output
      ERROR_VARIABLE output)
    if(NOT result EQUAL 0 OR NOT EXISTS "${archive}")
      message(
        FATAL_ERROR
          "Could not fetch ducc0 ${ducc0_version} with pip:\n${output}\n"
          "This needs pip and scikit-build-core in ${Python_EXECUTABLE}, and a package index. "
          "On a machine without one, unpack the source distribution of ducc0 and configure with "
          "-DPYSOFTQ_DUCC0_DIR=<that folder>.")
    endif()
    file(SHA256 "${archive}" hash)
    if(NOT hash STREQUAL ducc0_sha256)
      file(REMOVE "${archive}")
      message(FATAL_ERROR "ducc0 ${ducc0_version}: sha256 ${hash}, wanted ${ducc0_sha256}")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}")
  endif()
  set(${out_folder} "${sources}" PARENT_SCOPE)
endfunction()

if(PYSOFTQ_DUCC0_DIR)
  get_filename_component(ducc0_folder "${PYSOFTQ_DUCC0_DIR}" ABSOLUTE)
  set(ducc0_origin "${ducc0_folder}")
else()
  pysoftq_fetch_ducc0(ducc0_folder)
  set(ducc0_origin "${ducc0_version}, fetched")
endif()

set(ducc0_include "${ducc0_folder}/src")
if(NOT EXISTS "${ducc0_include}/ducc0/fft/fft1d_impl.h")
  message(FATAL_ERROR "No src/ducc0/fft/fft1d_impl.h in ${ducc0_folder}: "
                      "PYSOFTQ_DUCC0_DIR wants the unpacked source distribution of ducc0")
endif()

add_library(ducc0_fft STATIC "${ducc0_include}/ducc0/infra/threading.cc"
                             "${ducc0_include}/ducc0/infra/string_utils.cc")
target_include_directories(ducc0_fft SYSTEM PUBLIC "${ducc0_include}")
target_compile_definitions(ducc0_fft PUBLIC DUCC0_NO_LOWLEVEL_THREADING)
target_link_libraries(ducc0_fft PRIVATE softq_build softq_templates)
