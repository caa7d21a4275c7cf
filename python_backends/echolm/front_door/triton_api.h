// The part of Triton's C API that the front door uses, declared here since no package carries it.
//
// Source of the signatures and values: triton-inference-server/core, include/triton/core/
// tritonserver.h and tritonbackend.h, release 24.05. Later releases only add to them.
#pragma once

#include <cstddef>
#include <cstdint>

#define TRITON_EXPORT __attribute__((visibility("default")))

extern "C" {

struct TRITONSERVER_Error;
struct TRITONSERVER_InferenceRequest;
struct TRITONSERVER_InferenceResponse;
struct TRITONSERVER_InferenceTrace;
struct TRITONSERVER_ResponseAllocator;
struct TRITONSERVER_Server;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Output;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_ResponseFactory;

enum TRITONSERVER_Error_Code : int {
  TRITONSERVER_ERROR_INTERNAL = 1,
  TRITONSERVER_ERROR_INVALID_ARG = 3,
  TRITONSERVER_ERROR_UNAVAILABLE = 4,
  TRITONSERVER_ERROR_CANCELLED = 7
};
enum TRITONSERVER_DataType : int { TRITONSERVER_TYPE_INT32 = 8, TRITONSERVER_TYPE_BYTES = 13 };
enum TRITONSERVER_ParameterType : int {};
enum TRITONSERVER_MemoryType : int { TRITONSERVER_MEMORY_CPU = 0 };
enum TRITONSERVER_LogLevel : int { TRITONSERVER_LOG_WARN = 1, TRITONSERVER_LOG_ERROR = 2 };
constexpr uint32_t TRITONSERVER_REQUEST_RELEASE_ALL = 1;
constexpr uint32_t TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1;

using Status = TRITONSERVER_Error*;  // null: it went well; whoever gets an error deletes it
Status TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code, const char* message);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error*);
TRITONSERVER_Error_Code TRITONSERVER_ErrorCode(TRITONSERVER_Error*);
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error*);
Status TRITONSERVER_LogMessage(TRITONSERVER_LogLevel, const char* file, int line, const char*);
TRITONSERVER_DataType TRITONSERVER_StringToDataType(const char* name);
uint32_t TRITONSERVER_DataTypeByteSize(TRITONSERVER_DataType);  // of an element; 0: BYTES

// Requests made in the server's own process.
using Allocate = Status (*)(TRITONSERVER_ResponseAllocator*, const char* tensor, size_t byte_size,
                            TRITONSERVER_MemoryType preferred, int64_t preferred_id, void* user,
                            void** buffer, void** buffer_user, TRITONSERVER_MemoryType* actual,
                            int64_t* actual_id);
using Release = Status (*)(TRITONSERVER_ResponseAllocator*, void* buffer, void* buffer_user,
                           size_t byte_size, TRITONSERVER_MemoryType, int64_t memory_id);
using Start = Status (*)(TRITONSERVER_ResponseAllocator*, void* user);
using OnRelease = void (*)(TRITONSERVER_InferenceRequest*, uint32_t flags, void* user);
using OnComplete = void (*)(TRITONSERVER_InferenceResponse*, uint32_t flags, void* user);
Status TRITONSERVER_ResponseAllocatorNew(TRITONSERVER_ResponseAllocator**, Allocate, Release,
                                         Start);
Status TRITONSERVER_InferenceRequestNew(TRITONSERVER_InferenceRequest**, TRITONSERVER_Server*,
                                        const char* model, int64_t version);
Status TRITONSERVER_InferenceRequestDelete(TRITONSERVER_InferenceRequest*);
Status TRITONSERVER_InferenceRequestSetId(TRITONSERVER_InferenceRequest*, const char* id);
Status TRITONSERVER_InferenceRequestSetDoubleParameter(TRITONSERVER_InferenceRequest*,
                                                       const char* key, double value);
Status TRITONSERVER_InferenceRequestSetStringParameter(TRITONSERVER_InferenceRequest*,
                                                       const char* key, const char* value);
Status TRITONSERVER_InferenceRequestAddInput(TRITONSERVER_InferenceRequest*, const char* name,
                                             TRITONSERVER_DataType, const int64_t* shape,
                                             uint64_t dims);
Status TRITONSERVER_InferenceRequestAppendInputData(TRITONSERVER_InferenceRequest*,
                                                    const char* name, const void* data, size_t size,
                                                    TRITONSERVER_MemoryType, int64_t memory_id);
Status TRITONSERVER_InferenceRequestSetReleaseCallback(TRITONSERVER_InferenceRequest*, OnRelease,
                                                       void* user);
Status TRITONSERVER_InferenceRequestSetResponseCallback(TRITONSERVER_InferenceRequest*,
                                                        TRITONSERVER_ResponseAllocator*,
                                                        void* allocator_user, OnComplete,
                                                        void* user);
Status TRITONSERVER_ServerInferAsync(TRITONSERVER_Server*, TRITONSERVER_InferenceRequest*,
                                     TRITONSERVER_InferenceTrace*);
Status TRITONSERVER_ServerModelIsReady(TRITONSERVER_Server*, const char* model, int64_t version,
                                       bool* ready);
Status TRITONSERVER_InferenceRequestCancel(TRITONSERVER_InferenceRequest*);
Status TRITONSERVER_InferenceResponseError(TRITONSERVER_InferenceResponse*);
Status TRITONSERVER_InferenceResponseDelete(TRITONSERVER_InferenceResponse*);
Status TRITONSERVER_InferenceResponseOutputCount(TRITONSERVER_InferenceResponse*, uint32_t*);
Status TRITONSERVER_InferenceResponseOutput(TRITONSERVER_InferenceResponse*, uint32_t index,
                                            const char** name, TRITONSERVER_DataType*,
                                            const int64_t** shape, uint64_t* dims,
                                            const void** data, size_t* size,
                                            TRITONSERVER_MemoryType*, int64_t* memory_id,
                                            void** user);

// The model that this library is.
Status TRITONBACKEND_ModelName(TRITONBACKEND_Model*, const char** name);
Status TRITONBACKEND_ModelServer(TRITONBACKEND_Model*, TRITONSERVER_Server**);
Status TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance*, TRITONBACKEND_Model**);
Status TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance*, void** state);
Status TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance*, void* state);
Status TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance*,
                                                   TRITONBACKEND_Request*, bool success,
                                                   uint64_t start_ns, uint64_t compute_start_ns,
                                                   uint64_t compute_end_ns, uint64_t end_ns);
Status TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance*,
                                                        uint64_t batch_size, uint64_t start_ns,
                                                        uint64_t compute_start_ns,
                                                        uint64_t compute_end_ns, uint64_t end_ns);

// A client's request and its responses.
Status TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request*, uint32_t*);
Status TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request*, uint32_t, TRITONBACKEND_Input**);
Status TRITONBACKEND_InputProperties(TRITONBACKEND_Input*, const char** name,
                                     TRITONSERVER_DataType*, const int64_t** shape, uint32_t* dims,
                                     uint64_t* size, uint32_t* buffers);
Status TRITONBACKEND_InputBuffer(TRITONBACKEND_Input*, uint32_t index, const void** buffer,
                                 uint64_t* size, TRITONSERVER_MemoryType*, int64_t* memory_id);
Status TRITONBACKEND_RequestParameterCount(TRITONBACKEND_Request*, uint32_t*);
Status TRITONBACKEND_RequestParameter(TRITONBACKEND_Request*, uint32_t index, const char** name,
                                      TRITONSERVER_ParameterType*, const void** value);
Status TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request*, uint32_t*);
Status TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request*, uint32_t index, const char** name);
Status TRITONBACKEND_RequestRelease(TRITONBACKEND_Request*, uint32_t flags);
Status TRITONBACKEND_ResponseFactoryNew(TRITONBACKEND_ResponseFactory**, TRITONBACKEND_Request*);
Status TRITONBACKEND_ResponseFactoryDelete(TRITONBACKEND_ResponseFactory*);
Status TRITONBACKEND_ResponseFactoryIsCancelled(TRITONBACKEND_ResponseFactory*, bool*);
Status TRITONBACKEND_ResponseNewFromFactory(TRITONBACKEND_Response**,
                                            TRITONBACKEND_ResponseFactory*);
Status TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response*, TRITONBACKEND_Output**,
                                    const char* name, TRITONSERVER_DataType, const int64_t* shape,
                                    uint32_t dims);
Status TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output*, void** buffer, uint64_t size,
                                  TRITONSERVER_MemoryType*, int64_t* memory_id);
Status TRITONBACKEND_ResponseDelete(TRITONBACKEND_Response*);
// Takes the response, but not the error.
Status TRITONBACKEND_ResponseSend(TRITONBACKEND_Response*, uint32_t flags, TRITONSERVER_Error*);
}
