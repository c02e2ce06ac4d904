/* Runs a compiled network in C++, with TVM's runtime and its FFI, without Python.
 *
 * tvm_example LIBRARY INPUT... OUTPUT...
 *
 * LIBRARY is what `tvm-directconv compile MODEL -o LIBRARY` wrote for this processor. Its manifest,
 * LIBRARY.json, says how many inputs and outputs there are, and of which shapes and types. INPUT and
 * OUTPUT are files of raw values, in that order: inputs are read, outputs are written.
 *
 * Exit status: 0, 1 when something failed, 2 when the command line is wrong.
 * Build:
 *
 *   site=$(tvm-ffi-config --libdir)/../..
 *   g++ -std=c++17 -O2 tvm_example.cc -o tvm_example -I"$site/tvm_ffi/include" \
 *       -L"$site/tvm_ffi/lib" -ltvm_ffi -L"$site/tvm/lib" -Wl,--no-as-needed -ltvm_runtime \
 *       -Wl,-rpath,"$site/tvm_ffi/lib:$site/tvm/lib"
 *
 * libtvm_runtime registers its functions when it is loaded. Nothing here names a symbol of it, and
 * linkers may leave out such libraries, hence --no-as-needed. Networks that were compiled for one
 * thread do without it.
 */
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

/* Networks refuse tensors that are not aligned. */
struct AlignedMemory {
    static constexpr std::align_val_t kAlignment{64};

    void AllocData(DLTensor *tensor) {
        tensor->data = ::operator new(ffi::GetDataSize(*tensor), kAlignment);
    }
    void FreeData(DLTensor *tensor) { ::operator delete(tensor->data, kAlignment); }
};

ffi::Tensor NewTensor(const ffi::Shape &shape, DLDataType type) {
    return ffi::Tensor::FromNDAlloc(AlignedMemory(), shape, type, DLDevice{kDLCPU, 0});
}

std::string ReadFile(const std::string &path, const std::string &expected) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path + ": expected " + expected);
    return {std::istreambuf_iterator<char>(file), {}};
}

void ReadTensor(const std::string &path, const ffi::Tensor &tensor) {
    const size_t bytes = ffi::GetDataSize(*tensor.GetDLTensorPtr());
    const std::string expected = "an input of " + std::to_string(bytes) + " bytes";
    const std::string content = ReadFile(path, expected);
    if (content.size() != bytes)
        throw std::runtime_error(path + " has " + std::to_string(content.size()) +
                                 " bytes: expected " + expected);
    content.copy(static_cast<char *>(tensor.data_ptr()), bytes);
}

void WriteTensor(const std::string &path, const ffi::Tensor &tensor) {
    std::ofstream file(path, std::ios::binary);
    file.write(static_cast<const char *>(tensor.data_ptr()),
               static_cast<std::streamsize>(ffi::GetDataSize(*tensor.GetDLTensorPtr())));
    file.close();
    if (!file) throw std::runtime_error("cannot write the output " + path);
}

ffi::json::Object ReadManifest(const std::string &library) {
    const std::string path = library + ".json";
    const std::string expected = "the manifest of a network, as tvm-directconv writes it";
    const auto manifest = ffi::json::Parse(ReadFile(path, expected)).cast<ffi::json::Object>();
    if (manifest.count("kind") == 0 || manifest["kind"].cast<ffi::String>() != "network" ||
        manifest["format"].cast<int>() != 1)
        throw std::runtime_error(path + " is of another kind or format: expected " + expected);
    return manifest;
}

int Run(const std::string &library, const std::vector<std::string> &files) {
    const ffi::json::Object manifest = ReadManifest(library);
    const auto inputs = manifest["inputs"].cast<ffi::Array<ffi::json::Object>>();
    const auto outputs = manifest["outputs"].cast<ffi::Array<ffi::json::Object>>();
    if (files.size() != inputs.size() + outputs.size()) {
        std::cerr << "tvm_example: there are " << files.size() << " files: expected "
                  << inputs.size() << " input(s) and " << outputs.size() << " output(s)\n";
        return 2;
    }

    /* Parallel loops run on TVM's pool of threads, whose size is settled when it is first used: on
     * x86 it is half the number of processors, unless the environment has another. (It binds threads
     * to cores, too, unless TVM_BIND_THREADS is 0.) The runtime has to be there before the library is
     * loaded, which finds its parallel loops there; without it, this throws. */
    if (const int threads = manifest["threads"].cast<int>(); threads > 1) {
        const int overwrite = 0;
        setenv("TVM_NUM_THREADS", std::to_string(threads).c_str(), overwrite);
        ffi::Function::GetGlobalRequired("runtime.NumThreads")();
    }
    /* The dynamic linker would look for a name without a folder elsewhere. */
    const std::string path = std::filesystem::absolute(library).string();
    const ffi::Module module = ffi::Module::LoadFromFile(path);
    const ffi::Optional<ffi::Function> network = module->GetFunction("main");
    if (!network) throw std::runtime_error("it has no function main: expected a network");

    /* The arguments: inputs, outputs, and last the arena, which is memory for intermediates. Whoever
     * runs a network often makes them once; the network keeps nothing from call to call. */
    std::vector<ffi::Tensor> tensors;
    for (const auto &ports : {inputs, outputs})
        for (const ffi::json::Object &port : ports)
            tensors.push_back(NewTensor(port["shape"].cast<ffi::Shape>(),
                                        port["dtype"].cast<DLDataType>()));
    const int64_t arena_bytes = manifest["arena_bytes"].cast<int64_t>();
    tensors.push_back(NewTensor({arena_bytes / 4}, DLDataType{kDLFloat, 32, 1}));

    for (size_t i = 0; i < inputs.size(); i++) ReadTensor(files[i], tensors[i]);
    /* How many arguments there are is only known now; else it would be network(x, y, arena). */
    const std::vector<ffi::AnyView> arguments(tensors.begin(), tensors.end());
    ffi::Any nothing;
    network.value().CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &nothing);
    for (size_t i = inputs.size(); i < files.size(); i++) WriteTensor(files[i], tensors[i]);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: tvm_example LIBRARY INPUT... OUTPUT...\n";
        return 2;
    }
    const std::string library = argv[1];
    try {
        return Run(library, {argv + 2, argv + argc});
    } catch (const ffi::Error &error) { /* of TVM, or of the network against its arguments */
        std::cerr << "tvm_example: " << library << ": " << error.kind() << ": " << error.message()
                  << "\n";
    } catch (const std::exception &error) {
        std::cerr << "tvm_example: " << library << ": " << error.what() << "\n";
    }
    return 1;
}
