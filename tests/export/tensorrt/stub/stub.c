/* Stands in for libnvinfer, libnvinfer_plugin and libnvonnxparser, so that TensorRT's real Python bindings can be
 * imported and called without a GPU. Every entry point returns one object, and every virtual function of that object
 * returns it again. The bindings convert and check each argument before they call down, which is what is under test.
 */
#include <stdint.h>

enum { SLOTS = 512 };

extern void *_ZTIi[]; /* some std::type_info: pybind11 looks at the dynamic type of what it is given */

static void *object[4];          /* [0] vtable; [1..3] pimpl and other members, all of them this object */
static void *table[2 + SLOTS];   /* [0] offset to top, [1] type info, then functions */

static void *answer(void) { return object; }

__attribute__((constructor)) static void initialise(void) {
    table[1] = _ZTIi;
    for (int i = 0; i < SLOTS; i++) table[2 + i] = (void *)answer;
    object[0] = table + 2;
    object[1] = object[2] = object[3] = object;
}

void *createInferBuilder_INTERNAL(void) { return object; }
void *createInferRuntime_INTERNAL(void) { return object; }
void *createInferRefitter_INTERNAL(void) { return object; }
void *createNvOnnxParser_INTERNAL(void) { return object; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return object; }
void *getPluginRegistry(void) { return object; }
void *getBuilderPluginRegistry(void) { return object; }
int32_t getNvOnnxParserVersion(void) { return 0; }
int32_t getInferLibVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 1; }
