// Reads streamed answers with as little work as there is, and notes when each piece came: what is measured is the server.
//
//   client PORT STREAMS SECONDS FILE < requests    their bytes, zero bytes between them, sent on one connection after the other, again and
//   again
//
// Writes pairs of doubles to FILE, the time on the monotonic clock and the number of the connection, one for each `"content":"` after the
// first piece of a connection, which says who speaks; prints the CPU seconds it took.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

double cpu_seconds() {
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

int count(std::string_view text, std::string_view what) {
  int found = 0;
  for (size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

[[noreturn]] void fail(const char* what) {
  perror(what);
  exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return fprintf(stderr, "usage: client PORT STREAMS SECONDS FILE < request\n"), 2;
  const int streams = atoi(argv[2]);
  const double seconds = atof(argv[3]);
  std::vector<std::string> requests(1);
  for (int c; (c = getchar()) != EOF;)
    if (c == 0)
      requests.emplace_back();
    else
      requests.back().push_back(char(c));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(uint16_t(atoi(argv[1])));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int ready = epoll_create1(0);
  std::vector<int> sockets;
  for (int i = 0; i < streams; ++i) {
    sockets.push_back(socket(AF_INET, SOCK_STREAM, 0));
    if (connect(sockets.back(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fail("connect");
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = uint32_t(i);
    epoll_ctl(ready, EPOLL_CTL_ADD, sockets.back(), &event);
  }
  for (size_t i = 0; i < sockets.size(); ++i) {
    const std::string& request = requests[i % requests.size()];
    if (write(sockets[i], request.data(), request.size()) != ssize_t(request.size())) fail("write");
  }
  std::vector<double> seen;
  seen.reserve(size_t(streams) * 20000);
  std::vector<char> buffer(1 << 16);
  const double before = cpu_seconds(), end = now() + seconds;
  for (double time = now(); time < end; time = now()) {
    epoll_event events[64];
    const int number = epoll_wait(ready, events, 64, 100);
    for (int i = 0; i < number; ++i) {
      const uint32_t stream = events[i].data.u32;
      const ssize_t size = read(sockets[stream], buffer.data(), buffer.size());
      if (size <= 0) fail("an answer ended early");
      const double came = now();
      const std::string_view text(buffer.data(), size_t(size));
      for (int left = count(text, "\"content\":\"") - count(text, "\"role\":"); left > 0; --left) {
        seen.push_back(came);
        seen.push_back(stream);
      }
    }
  }
  printf("%.6f\n", cpu_seconds() - before);
  FILE* file = fopen(argv[4], "wb");
  if (!file || fwrite(seen.data(), sizeof(double), seen.size(), file) != seen.size() || fclose(file) != 0) fail(argv[4]);
  for (const int one : sockets) close(one);
}
