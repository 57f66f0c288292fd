// The bound on log p(x) of an exported M1 on images of an idx file, and a sheet of originals and reconstructions.
//
//   bound FOLDER IMAGES [--count N] [--seed S] [--sheet FILE.pgm]
//
// FOLDER was written by `pyro-ssvae export RUN --to FOLDER --aoti`. The prior must be the standard normal. Pixels are
// binarised at 0.5. Without --seed, z is the mean of q(z|x); with it, a draw by torch.manual_seed(S); torch.randn(N, L).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Array {
  std::vector<float> data;
  std::vector<int64_t> shape;
};

#ifdef USE_ONNXRUNTIME
#include <onnxruntime_cxx_api.h>

class Network {
 public:
  explicit Network(const std::string& name) : session_(environment(), (name + ".onnx").c_str(), {}) {}

  std::vector<Array> run(std::vector<Array> inputs) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::AllocatedStringPtr> names;
    std::vector<const char*> in, out;
    std::vector<Ort::Value> values;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      in.push_back(names.emplace_back(session_.GetInputNameAllocated(i, allocator)).get());
      auto& [data, shape] = inputs[i];
      values.push_back(
          Ort::Value::CreateTensor<float>(memory, data.data(), data.size(), shape.data(), shape.size()));
    }
    for (size_t i = 0; i < session_.GetOutputCount(); ++i)
      out.push_back(names.emplace_back(session_.GetOutputNameAllocated(i, allocator)).get());
    std::vector<Array> found;
    for (auto& value : session_.Run({}, in.data(), values.data(), in.size(), out.data(), out.size())) {
      auto info = value.GetTensorTypeAndShapeInfo();
      const float* first = value.GetTensorData<float>();
      found.push_back({{first, first + info.GetElementCount()}, info.GetShape()});
    }
    return found;
  }

 private:
  static Ort::Env& environment() {
    static Ort::Env env;
    return env;
  }
  Ort::Session session_;
};

std::vector<float> draw_noise(int64_t, int64_t, uint64_t) {
  throw std::runtime_error("--seed draws the noise of PyTorch; build without -DONNXRUNTIME_DIR.");
}
#else
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

class Network {
 public:
  explicit Network(const std::string& name) : loader_(name + ".aoti.pt2") {}

  std::vector<Array> run(std::vector<Array> inputs) {
    c10::InferenceMode inference;
    std::vector<at::Tensor> tensors;
    for (auto& input : inputs) tensors.push_back(at::from_blob(input.data.data(), input.shape));
    std::vector<Array> found;
    for (auto& output : loader_.run(tensors)) {
      auto tensor = output.contiguous();
      const float* first = tensor.data_ptr<float>();
      found.push_back({{first, first + tensor.numel()}, tensor.sizes().vec()});
    }
    return found;
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};

std::vector<float> draw_noise(int64_t count, int64_t latents, uint64_t seed) {
  at::manual_seed(seed);
  auto noise = at::randn({count, latents});
  return {noise.data_ptr<float>(), noise.data_ptr<float>() + noise.numel()};
}
#endif

// Images of an idx file, (N, 1, H, W), binarised at 0.5.
Array read_images(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<unsigned char> bytes{std::istreambuf_iterator<char>(file), {}};
  auto number = [&](size_t at) {
    return int64_t{bytes[at]} << 24 | bytes[at + 1] << 16 | bytes[at + 2] << 8 | bytes[at + 3];
  };
  if (bytes.size() < 16 || number(0) != 0x803 ||
      int64_t(bytes.size()) != 16 + number(4) * number(8) * number(12))
    throw std::runtime_error(path + " is no idx file of images (magic number 2051); unpack a .gz file first.");
  Array images{{}, {number(4), 1, number(8), number(12)}};
  for (size_t i = 16; i < bytes.size(); ++i) images.data.push_back(bytes[i] > 127 ? 1.0f : 0.0f);
  return images;
}

Array slice(const Array& all, int64_t start, int64_t count) {
  const auto size = int64_t(all.data.size()) / all.shape[0];
  Array part{{all.data.begin() + start * size, all.data.begin() + (start + count) * size}, all.shape};
  part.shape[0] = count;
  return part;
}

// The first hundred originals, ten in a line, and below each line their reconstructions.
void write_sheet(const std::string& path, const Array& x, const Array& means) {
  const int64_t across = std::min<int64_t>(10, x.shape[0]), lines = std::min<int64_t>(10, x.shape[0] / across);
  const int64_t height = x.shape[2], width = x.shape[3];
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << across * width << " " << 2 * lines * height << "\n255\n";
  for (int64_t line = 0; line < lines; ++line)
    for (const Array* images : {&x, &means})
      for (int64_t row = 0; row < height; ++row)
        for (int64_t column = 0; column < across * width; ++column) {
          const int64_t image = across * line + column / width;
          const float grey = images->data[(image * height + row) * width + column % width];
          file.put(char(std::lround(255.0f * std::clamp(grey, 0.0f, 1.0f))));
        }
  if (!file.flush()) throw std::runtime_error(path + " cannot be written.");
}

int run(const std::vector<std::string>& arguments) {
  std::vector<std::string> paths;
  std::string sheet = "sheet.pgm", seed;
  int64_t count = INT64_MAX;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool last = i + 1 == arguments.size();
    if (arguments[i] == "--count" && !last) count = std::stoll(arguments[++i]);
    else if (arguments[i] == "--seed" && !last) seed = arguments[++i];
    else if (arguments[i] == "--sheet" && !last) sheet = arguments[++i];
    else paths.push_back(arguments[i]);
  }
  if (paths.size() != 2 || paths[0].starts_with("-") || paths[1].starts_with("-") || count < 1)
    throw std::runtime_error("usage: bound FOLDER IMAGES [--count N] [--seed S] [--sheet FILE.pgm]");
  Network encoder(paths[0] + "/encoder"), decoder(paths[0] + "/decoder"), likelihood(paths[0] + "/likelihood");
  Array images = read_images(paths[1]);
  count = std::min(count, images.shape[0]);

  std::vector<float> noise;
  double reconstruction = 0.0, divergence = 0.0;  // sums over the images, in nats
  for (int64_t start = 0; start < count; start += 1000) {
    const auto x = slice(images, start, std::min<int64_t>(1000, count - start));
    const auto posterior = encoder.run({x});
    const auto &mean = posterior[0], &scale = posterior[1];
    const auto latents = mean.shape[1];
    if (noise.empty())
      noise = seed.empty() ? std::vector<float>(count * latents) : draw_noise(count, latents, std::stoull(seed));
    Array z = mean;
    for (size_t i = 0; i < z.data.size(); ++i) {
      const double m = mean.data[i], s = scale.data[i];
      z.data[i] += scale.data[i] * noise[start * latents + i];
      divergence += 0.5 * (m * m + s * s - 1.0) - std::log(s);
    }
    const auto log_likelihood = likelihood.run({x, z});
    for (float nats : log_likelihood[0].data) reconstruction += nats;
    if (start == 0) write_sheet(sheet, x, decoder.run({z})[0]);
  }
  std::printf("%lld images of %lld x %lld pixels, z %s\n", (long long)count, (long long)images.shape[2],
              (long long)images.shape[3], seed.empty() ? "the mean of q(z|x)" : "a draw from q(z|x)");
  std::printf("log p(x|z)  %12.5f nats per example\n", reconstruction / double(count));
  std::printf("KL          %12.5f\n", divergence / double(count));
  std::printf("bound       %12.5f\n", (reconstruction - divergence) / double(count));
  std::printf("originals and reconstructions in %s\n", sheet.c_str());
  return 0;
}

int main(int argc, char** argv) try {
  return run({argv + 1, argv + argc});
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
