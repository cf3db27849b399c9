# Read by cmake while it configures Bitcoin Core (CMAKE_PROJECT_BitcoinCore_INCLUDE): compiles the
# libraries' sources in batches, because most of a file's time goes into the headers all share.
# A build of a third of the time, with the same code in it. Seen to work with this release on Linux.

function(compile_in_batches)
  set(libraries bitcoin_node bitcoin_common bitcoin_util bitcoin_consensus bitcoin_crypto univalue leveldb)
  set_target_properties(${libraries} PROPERTIES UNITY_BUILD ON)
  # Says `CacheSizes` of one namespace where a neighbour in the batch says that of another.
  set_source_files_properties(src/node/chainstate.cpp
    TARGET_DIRECTORY bitcoin_node
    PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON
  )
endfunction()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # Once all targets are there.
  cmake_language(DEFER CALL compile_in_batches)
endif()
